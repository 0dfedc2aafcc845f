"""Opens a model in whatever format it is stored, behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from jaxsgl.loading.dummy_checkpoint import DummyCheckpoint
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.gguf_checkpoint import GgufCheckpoint
from jaxsgl.loading.locate import model_name
from jaxsgl.loading.orbax_checkpoint import OrbaxCheckpoint, is_orbax_checkpoint
from jaxsgl.loading.safetensors_checkpoint import SafetensorsCheckpoint
from jaxsgl.models.model_config import KNOWN_ARCHITECTURES, ModelConfig

LoadFormat = Literal["auto", "gguf", "safetensors", "orbax", "dummy"]


class Checkpoint(Protocol):
    """A model on disk, known to be complete: every tensor of `config` is there in its shape."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tokenizer_source(self) -> Path | Mapping[str, Any] | None:
        """A folder with tokenizer.json, the metadata of a GGUF file, or nothing.

        Give it to `jaxsgl.tokenizer.load_tokenizer`.
        """
        ...

    def names(self) -> tuple[str, ...]:
        """Every tensor of the model, named as in HuggingFace's Llama (`model.layers.0.…`)."""
        ...

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return one tensor of `names()` in memory of its own; a matrix is [out, in].

        Rows of q and k are in the order of HuggingFace's half-split rotary embedding. Nothing is
        kept: the caller decides how many tensors are in memory. Raises CheckpointError if the file
        can no longer be read.
        """
        ...


def open_checkpoint(
    path: Path,
    load_format: str = "auto",
    *,
    seed: int = 0,
    known_architectures: tuple[str, ...] = KNOWN_ARCHITECTURES,
) -> Checkpoint | OrbaxCheckpoint:
    """Open the .gguf file or folder at `path`; `locate_model` finds it for people.

    Reads headers and configuration, no weights. `auto` goes by what is there; `dummy` needs a
    config.json alone and draws weights from `seed`. Raises CheckpointError with one line for a
    person.
    """
    if load_format == "auto":
        load_format = _stored_format(path)
    match load_format:
        case "gguf":
            return GgufCheckpoint(path, known_architectures)
        case "safetensors":
            return SafetensorsCheckpoint(path, model_name(path), known_architectures)
        case "orbax":
            return OrbaxCheckpoint(path, known_architectures)
        case "dummy":
            return DummyCheckpoint(path, model_name(path), seed, known_architectures)
        case _:
            known = ", ".join(LoadFormat.__args__)
            raise CheckpointError(f"load format {load_format!a} is unknown; known: {known}")


def _stored_format(path: Path) -> LoadFormat:
    if path.suffix == ".gguf":
        return "gguf"
    return "orbax" if is_orbax_checkpoint(path) else "safetensors"
