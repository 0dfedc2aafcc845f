"""From what a person configured to an open checkpoint and its tokenizer. Imports no jax.

Front and replica processes both begin here: the one to encode prompts, the other to load weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.loading.checkpoint import Checkpoint, open_checkpoint
from jaxsgl.loading.locate import locate_model
from jaxsgl.loading.orbax_checkpoint import OrbaxCheckpoint
from jaxsgl.tokenizer import TokenIdsOnly, Tokenizer, TokenizerError, load_tokenizer


def open_model(
    config: EngineConfig,
) -> tuple[Checkpoint | OrbaxCheckpoint, Tokenizer | TokenIdsOnly]:
    """Open the configured model; no weights are read.

    Raises CheckpointError, TokenizerError or ConfigError, one line for a person.
    """
    path, checkpoint = _open(config)
    vocab_size = checkpoint.config.vocab_size
    if config.skip_tokenizer_init:
        return checkpoint, TokenIdsOnly(vocab_size)
    source = checkpoint.tokenizer_source
    if config.tokenizer_path is not None:
        source = _tokenizer_source(Path(config.tokenizer_path).expanduser())
    if source is None:
        raise TokenizerError(
            f"{path}: holds no tokenizer; name one with --tokenizer-path, "
            "or serve token ids with --skip-tokenizer-init"
        )
    tokenizer = load_tokenizer(source, _chat_template(config.chat_template))
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}"
        )
    return checkpoint, tokenizer


def open_weights(config: EngineConfig) -> Checkpoint | OrbaxCheckpoint:
    """The same without its tokenizer."""
    return _open(config)[1]


def _open(config: EngineConfig) -> tuple[Path, Checkpoint | OrbaxCheckpoint]:
    path = locate_model(config.model_path, config.revision)
    return path, open_checkpoint(path, config.load_format, seed=config.random_seed)


def _tokenizer_source(path: Path) -> Path | Mapping[str, Any] | None:
    if (path / "tokenizer.json").is_file():
        return path
    return open_checkpoint(locate_model(str(path))).tokenizer_source


def _chat_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {path}: {error}") from error
