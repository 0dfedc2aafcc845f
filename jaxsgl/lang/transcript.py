"""A text and its token ids, growing together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, Self

MAX_CHARACTER_LEN = 4
"""Bytes of the longest character: more tokens than that are not opened again to find a whole
one."""


class TextTokenizer(Protocol):
    """What a transcript needs of `tokenizer.Tokenizer`."""

    @property
    def token_bytes(self) -> list[bytes]: ...

    @property
    def special_token_texts(self) -> Mapping[int, str]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def encode_continuation(self, text: str) -> list[int]: ...


class Transcript:
    """Tokens that a model has drawn stay as they are. Constant text is encoded in one piece up to
    the moment when somebody asks for the ids; of those only the last token is opened again when
    more text follows. What was sent to an engine is therefore, but for that token, the beginning of
    everything that will be sent.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._chunks: list[bytes] = []
        """All that was written, control tokens included."""
        self._fixed: list[int] = []
        self._open = ""
        """Constant text behind `_fixed`, whose ids may still change."""
        self._open_ids: list[int] | None = []
        """The ids of `_open`; None before they are wanted."""
        self._begins_as_chat = False

    def copy(self) -> Self:
        twin = type(self)(self._tokenizer)
        twin._chunks = self._chunks.copy()
        twin._fixed = self._fixed.copy()
        twin._open, twin._open_ids = self._open, self._open_ids
        twin._begins_as_chat = self._begins_as_chat
        return twin

    def add_text(self, text: str) -> None:
        """Constant text; control tokens written in it are ordinary characters."""
        if text:
            self._chunks.append(text.encode())
            self._open += text
            self._open_ids = None

    def add_pieces(self, pieces: Iterable[str | int]) -> str:
        """What a chat template writes: texts and ids of control tokens. Returns all as text."""
        if not self._chunks:
            self._begins_as_chat = True
        begin = len(self._chunks)
        for piece in pieces:
            if isinstance(piece, str):
                self.add_text(piece)
            else:
                written = self._tokenizer.special_token_texts[piece].encode()
                self._add_fixed([piece], written)
        return b"".join(self._chunks[begin:]).decode()

    def add_drawn(self, token_ids: Sequence[int]) -> None:
        """Tokens from a model."""
        token_bytes = self._tokenizer.token_bytes
        self._add_fixed(token_ids, b"".join(token_bytes[token_id] for token_id in token_ids))

    def token_ids(self) -> list[int]:
        """Raises TokenizerError."""
        self._encode_open()
        assert self._open_ids is not None
        return self._fixed + self._open_ids

    def text(self) -> str:
        """U+FFFD stands for drawn bytes that are not UTF-8."""
        return b"".join(self._chunks).decode(errors="replace")

    @property
    def unencoded_len(self) -> int:
        """Characters that the next call of `token_ids` has to encode."""
        return len(self._open) if self._open_ids is None else 0

    def _add_fixed(self, token_ids: Sequence[int], data: bytes) -> None:
        self._encode_open()
        assert self._open_ids is not None
        self._fixed += self._open_ids
        self._fixed += token_ids
        self._open, self._open_ids = "", []
        self._chunks.append(data)

    def _encode_open(self) -> None:
        """Leave no more open than the last token, or the last few if it ends within a character."""
        if self._open_ids is not None:
            return
        if self._fixed:
            ids = self._tokenizer.encode_continuation(self._open)
        else:
            with_special = not self._begins_as_chat
            ids = self._tokenizer.encode(self._open, add_special_tokens=with_special)
        num_open, text = self._last_characters(ids)
        self._fixed += ids[: len(ids) - num_open]
        self._open_ids = ids[len(ids) - num_open :]
        self._open = text

    def _last_characters(self, ids: list[int]) -> tuple[int, str]:
        """How many of the last of `ids` make whole characters of `_open`, and which. None where
        the tokenizer does not give back what it took."""
        whole = self._open.encode()
        data = b""
        for num_open, token_id in enumerate(reversed(ids[-MAX_CHARACTER_LEN:]), 1):
            data = self._tokenizer.token_bytes[token_id] + data
            if not data or not whole.endswith(data):
                break
            try:
                return num_open, data.decode()
            except UnicodeDecodeError:
                continue
        return 0, ""


def tokens_of(
    text: str, drawn: Sequence[int], token_bytes: Sequence[bytes], stop: str | int | None
) -> tuple[tuple[int, ...], str]:
    """The drawn tokens that are part of an answer's text, and what of the text they leave.

    `stop` is what ended the answer: a token of its own, or a text that begins where the answer
    ends and may do so within a token.
    """
    ids = drawn[:-1] if isinstance(stop, int) and drawn and drawn[-1] == stop else drawn
    data = b"".join(token_bytes[token_id] for token_id in ids)
    end = len(data)
    if isinstance(stop, str):
        end = data.find(stop.encode())
        while end >= 0 and data[:end].decode(errors="replace") != text:
            end = data.find(stop.encode(), end + 1)
        end = len(data) if end < 0 else end
    length = 0
    for num_whole, token_id in enumerate(ids):
        if length + len(token_bytes[token_id]) > end:
            return tuple(ids[:num_whole]), data[length:end].decode(errors="replace")
        length += len(token_bytes[token_id])
    return tuple(ids), ""
