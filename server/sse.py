"""Server-sent events as bytes. No I/O here."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from jaxsgl.interface import EngineError
from server.errors import error_body

DONE = b"data: [DONE]\n\n"

_MARK = "<text>"


def event(data: bytes) -> bytes:
    """One event carrying the JSON `data`."""
    return b"data: " + _whole_line(data) + b"\n\n"


def named_event(name: str, data: bytes) -> bytes:
    """One event of that name."""
    return b"event: " + name.encode() + b"\n" + event(data)


def error_event(error: EngineError) -> bytes:
    """The last event of a stream that broke."""
    return event(error_body(error))


class TextEvent:
    """An event that is sent many times with another text in it, encoded once but for the text.

    `make(text)` gives the object to send. Nothing that varies may follow the text in it.
    """

    def __init__(self, make: Callable[[str], msgspec.Struct]) -> None:
        encoded = event(msgspec.json.encode(make(_MARK)))
        # From the right: a model's name may contain the mark as well, but it comes first.
        self._before, _, self._after = encoded.rpartition(msgspec.json.encode(_MARK))

    def __call__(self, text: str) -> bytes:
        return self._before + _whole_line(msgspec.json.encode(text)) + self._after


def _whole_line(data: bytes) -> bytes:
    """The same JSON, left whole by every line splitter.

    JSON lets U+0085, U+2028 and U+2029 stand in strings as they are, but many clients split a
    stream there too.
    """
    if data.isascii():
        return data
    return (
        data.replace(b"\xc2\x85", b"\\u0085")
        .replace(b"\xe2\x80\xa8", b"\\u2028")
        .replace(b"\xe2\x80\xa9", b"\\u2029")
    )
