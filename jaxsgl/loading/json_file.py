"""Reads JSON files of bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from jaxsgl.loading.errors import CheckpointError

MAX_JSON_BYTES = 64 * 2**20
"""An index of 100,000 tensors takes 10 MiB."""


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in `path`. Raises CheckpointError, which names the file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: is larger than {MAX_JSON_BYTES} bytes")
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not a JSON object: {error}") from None
