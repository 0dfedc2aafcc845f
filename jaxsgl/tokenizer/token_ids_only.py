"""What stands in for a tokenizer where none is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from jaxsgl.tokenizer.errors import TokenizerError


class TokenIdsOnly:
    """Knows how many tokens there are, and nothing of their text: prompts must be token ids."""

    has_chat_template = False
    eos_token_ids: tuple[int, ...] = ()
    special_token_texts: Mapping[int, str] = MappingProxyType({})
    tool_format = "hermes"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.token_bytes: list[bytes] = []

    def encode(self, text: str, *, add_special_tokens: bool = True) -> NoReturn:
        raise TokenizerError("no tokenizer is loaded (--skip-tokenizer-init): send token ids")

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> NoReturn:
        raise TokenizerError("no tokenizer is loaded (--skip-tokenizer-init): there is no text")

    def encode_chat(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool = True, **options: Any
    ) -> NoReturn:
        raise TokenizerError("no tokenizer is loaded (--skip-tokenizer-init): send token ids")
