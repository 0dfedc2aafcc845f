"""Text and messages to token ids and back, for models stored as GGUF or as HuggingFace folders.

Imports neither jax nor transformers, so that the front process starts quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsgl.tokenizer.errors import TokenizerError
from jaxsgl.tokenizer.gguf_vocabulary import tokenizer_from_gguf
from jaxsgl.tokenizer.token_ids_only import TokenIdsOnly
from jaxsgl.tokenizer.tokenizer import Tokenizer
from jaxsgl.tokenizer.tokenizer_folder import tokenizer_from_folder
from jaxsgl.tokenizer.utf8_stream import Utf8Stream

__all__ = ["TokenIdsOnly", "Tokenizer", "TokenizerError", "Utf8Stream", "load_tokenizer"]


def load_tokenizer(source: Path | Mapping[str, Any], chat_template: str | None = None) -> Tokenizer:
    """Return the tokenizer of a folder, or of a GGUF file whose metadata is `source`.

    `chat_template` is the source of a template to use instead of the model's. Raises
    TokenizerError, with one line for a person.
    """
    if isinstance(source, Path):
        return tokenizer_from_folder(source, chat_template)
    return tokenizer_from_gguf(source, chat_template)
