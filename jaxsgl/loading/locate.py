"""Finds the model that a person means by `--model-path`. Never uses the network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from jaxsgl.loading.default_model import default_model_path
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.orbax_checkpoint import is_orbax_checkpoint


def locate_model(model_path: str | None, revision: str | None = None) -> Path:
    """Return a .gguf file, a folder with a config.json, or one that `jaxsgl.convert` wrote.

    `model_path` is one of these, a folder with exactly one .gguf file, or the id of a repository
    (`owner/name`) whose `revision` is in the local HuggingFace cache. None is the default model.
    Raises CheckpointError.
    """
    if model_path is None:
        return default_model_path()
    path = Path(model_path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        path = _cached_repository(model_path, revision)
    if (path / "config.json").exists() or is_orbax_checkpoint(path):
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        raise CheckpointError(f"{path}: holds no config.json and {len(files)} .gguf files, not one")
    return files[0]


def model_name(path: Path) -> str:
    """Return what people call the model in folder `path`: its repository's id or its own name."""
    snapshots = path.absolute().parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
        return snapshots.parent.name.removeprefix("models--").replace("--", "/")
    return path.absolute().name


def _cached_repository(repo_id: str, revision: str | None) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(repo_id, revision=revision, local_files_only=True)
        )
    except (HFValidationError, LocalEntryNotFoundError):
        raise CheckpointError(
            f"{repo_id[:200]!a}: no such file or folder, and not in the local HuggingFace cache"
        ) from None
