"""A tokenizer that one can compute by hand: a token is a byte of UTF-8."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxsgl.tokenizer import TokenizerError


class ByteTokenizer:
    vocab_size = 256
    token_bytes = [bytes([n]) for n in range(256)]  # noqa: RUF012 - never changed

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            raise TokenizerError("the text is not valid Unicode") from error

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return bytes(ids).decode(errors="replace")

    def encode_chat(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool = True, **options: Any
    ) -> list[int]:
        """`user:hi\\n` for each message, then `assistant:`."""
        text = "".join(f"{m['role']}:{m['content']}\n" for m in messages)
        return self.encode(text + "assistant:" * add_generation_prompt)
