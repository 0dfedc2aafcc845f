"""Keeps what a tokenizer is built from beside converted weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jaxsgl.loading.json_file import read_json_object

type TokenizerSource = Path | Mapping[str, Any] | None
"""What `jaxsgl.tokenizer.load_tokenizer` takes, or nothing."""

METADATA_FILE = "gguf_metadata.json"
METADATA_PREFIX = "tokenizer."
FOLDER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)
"""All that `tokenizer.tokenizer_folder` reads: the last two name tokens that end an answer."""


def write_tokenizer(source: TokenizerSource, folder: Path) -> None:
    """Store `source` in `folder`, so that `read_tokenizer` gives its equal; nothing for nothing."""
    if isinstance(source, Path):
        if (source / "tokenizer.json").is_file():
            folder.mkdir()
            for name in FOLDER_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
    elif source is not None:
        folder.mkdir()
        metadata = {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in source.items()
            if key.startswith(METADATA_PREFIX)
        }
        (folder / METADATA_FILE).write_bytes(msgspec.json.encode(metadata))


def read_tokenizer(folder: Path) -> TokenizerSource:
    """Return the folder, the metadata of a GGUF file, or None if neither was stored.

    Raises CheckpointError if the metadata cannot be read.
    """
    if (folder / METADATA_FILE).is_file():
        metadata = read_json_object(folder / METADATA_FILE)
        return {key: _as_in_gguf(value) for key, value in metadata.items()}
    return folder if (folder / "tokenizer.json").is_file() else None


def _as_in_gguf(value: Any) -> Any:
    """Arrays of strings are lists there, arrays of numbers NumPy's."""
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        return np.array(value)
    return value
