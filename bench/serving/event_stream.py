"""A streamed answer, from bytes to events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

DONE = b"[DONE]"


class _Delta(msgspec.Struct):
    content: str | None = None
    role: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


def _adds(delta: _Delta | None) -> bool:
    return delta is not None and delta.content is not None and delta.role is None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _CachedTokens | None = None

    @property
    def cached_len(self) -> int:
        details = self.prompt_tokens_details
        return (details and details.cached_tokens) or 0


class Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None

    @property
    def text(self) -> str:
        return "".join(
            choice.text or (choice.delta and choice.delta.content) or "" for choice in self.choices
        )

    @property
    def answers(self) -> bool:
        """Whether it is part of an answer, though maybe without text: not the usage, and not what
        opens a chat."""
        return any(choice.text is not None or _adds(choice.delta) for choice in self.choices)

    @property
    def finish(self) -> str | None:
        return next((c.finish_reason for c in self.choices if c.finish_reason is not None), None)

    @property
    def failure(self) -> str | None:
        """What went wrong on the server, in either of the two shapes that servers use."""
        if self.object == "error":
            return self.message or "error"
        if self.error is None:
            return None
        return str(self.error.get("message") if isinstance(self.error, dict) else self.error)


_DECODER = msgspec.json.Decoder(Event)


def decode_event(data: bytes) -> Event:
    """Raises ValueError (msgspec.DecodeError) if it is no event."""
    return _DECODER.decode(data)


class EventSplitter:
    """Cuts a stream into the data of its events; keeps what is not complete yet."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
