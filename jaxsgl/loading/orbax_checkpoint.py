"""A folder that `python -m jaxsgl.convert` wrote: weights as the model keeps them, and all else
that serving needs.

    jaxsgl.json   what the model is, and what files its weights consist of
    weights/      an Orbax checkpoint, read by `orbax_weights`
    tokenizer/    what the tokenizer is built from, if the source had one

Imports neither jax nor Orbax: the process that answers HTTP opens checkpoints, too.
"""

from __future__ import annotations

import dataclasses
import importlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.json_file import read_json_object
from jaxsgl.loading.model_tensors import check_config
from jaxsgl.loading.orbax_tokenizer import TokenizerSource, read_tokenizer
from jaxsgl.models.model_config import KNOWN_ARCHITECTURES, ModelConfig

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from jaxsgl.models.sharding import Layout
    from jaxsgl.models.weights import Model, ModelClass

MANIFEST_FILE = "jaxsgl.json"
WEIGHTS_FOLDER = "weights"
TOKENIZER_FOLDER = "tokenizer"
FORMAT_VERSION = 4
MAX_CHECKED_BYTES = 2**20
"""Files up to that size are known by their content: those that say where the weights lie. Of the
others, with the weights themselves, only the size is known; reading them twice would take long."""


class _WeightFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    num_bytes: int
    crc32: int | None
    """None for a file beyond MAX_CHECKED_BYTES."""


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format_version: int
    config: dict[str, Any]
    dtype: str
    weight_files: dict[str, _WeightFile]
    """By path below the weights' folder."""


class OrbaxCheckpoint:
    """A model on disk whose weights lie there as the model keeps them. Opening reads none."""

    def __init__(
        self, folder: Path, known_architectures: tuple[str, ...] = KNOWN_ARCHITECTURES
    ) -> None:
        """Raises CheckpointError unless the folder is complete and holds a known model."""
        file = str(folder / MANIFEST_FILE)
        manifest = _read_manifest(folder / MANIFEST_FILE)
        self.config = _model_config(manifest.config, file, known_architectures)
        self._weights_path = folder / WEIGHTS_FOLDER
        for name, expected in manifest.weight_files.items():
            _check_file(self._weights_path / name, expected)
        self.tokenizer_source: TokenizerSource = read_tokenizer(folder / TOKENIZER_FOLDER)

    def restore(
        self,
        model_class: ModelClass,
        layout: Layout,
        dtype: DTypeLike,
        progress: Callable[[int, int], None],
    ) -> Model:
        """See `orbax_weights.restore_weights`."""
        # Imported only where it is used: it brings jax, and Orbax, which most servers never need.
        orbax_weights = importlib.import_module("jaxsgl.loading.orbax_weights")
        return orbax_weights.restore_weights(
            self._weights_path, model_class, self.config, layout, dtype, progress
        )


def is_orbax_checkpoint(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).is_file()


def write_manifest(folder: Path, config: ModelConfig, dtype: str) -> None:
    """Complete a folder whose weights have been written."""
    weights = folder / WEIGHTS_FOLDER
    files = sorted(path for path in weights.rglob("*") if path.is_file())
    manifest = _Manifest(
        format_version=FORMAT_VERSION,
        config=dataclasses.asdict(config),
        dtype=dtype,
        weight_files={path.relative_to(weights).as_posix(): _weight_file(path) for path in files},
    )
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST_FILE).write_bytes(text)


def _read_manifest(path: Path) -> _Manifest:
    raw = read_json_object(path)
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {ascii(version)[:100]}; known: {FORMAT_VERSION}"
        )
    try:
        return msgspec.convert(raw, _Manifest)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _model_config(
    raw: dict[str, Any], file: str, known_architectures: tuple[str, ...]
) -> ModelConfig:
    unknown = raw.keys() - {field.name for field in dataclasses.fields(ModelConfig)}
    if unknown:
        # It may be what makes the model's outputs right.
        raise CheckpointError(f"{file}: config has {ascii(min(unknown))[:100]}, which is unknown")
    try:
        config = msgspec.convert(raw, ModelConfig)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{file}: config: {error}") from None
    if config.architecture not in known_architectures:
        known = ", ".join(known_architectures)
        raise CheckpointError(
            f"{file}: architecture {config.architecture[:100]!a} is unknown; known: {known}"
        )
    check_config(config, file)
    return config


def _weight_file(path: Path) -> _WeightFile:
    num_bytes = path.stat().st_size
    crc32 = zlib.crc32(path.read_bytes()) if num_bytes <= MAX_CHECKED_BYTES else None
    return _WeightFile(num_bytes, crc32)


def _check_file(path: Path, expected: _WeightFile) -> None:
    try:
        found = _weight_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if found.num_bytes != expected.num_bytes:
        raise CheckpointError(f"{path}: has {found.num_bytes} bytes, not {expected.num_bytes}")
    if found != expected:
        raise CheckpointError(f"{path}: is damaged: its checksum is wrong")
