"""The forms in which models write tool calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from server.tools.call_text import END, CallText, Reading
from server.tools.pieces import Piece, merged
from server.tools.pythonic import pythonic

MAX_NAME_LEN = 256
"""With what is between it and the arguments. An answer that begins calls again and again, and never
gives them any, would otherwise be read to its end for each."""


class CallParser(Protocol):
    """Takes one answer apart."""

    def feed(self, text: str) -> list[Piece]:
        """What more text brings."""
        ...

    def finish(self) -> list[Piece]:
        """What was held back; there is no more text."""
        ...


type Format = Callable[[CallText], Reading[None]]


class TextParser:
    """A CallParser for a format.

    The pieces are the same, joined, however the text was cut. Every call has arguments that are a
    JSON object: one that was cut off, or went wrong in its midst, is brought to an end. What looks
    like a call and turns out to be none before it has a name and arguments is content.
    """

    def __init__(self, format: Format, *, one_call: bool = False) -> None:
        """`one_call`: drop all calls but the first."""
        self._text = CallText()
        self._reading = format(self._text)
        self._one_call = one_call
        self._over = not self._starts()

    def feed(self, text: str) -> list[Piece]:
        if text and not self._over:
            self._send(text)
        return self._take()

    def finish(self) -> list[Piece]:
        # Where a reader goes back to the beginning of what was no call, it meets the end again.
        while not self._over:
            self._send(END)
        self._text.end()
        return self._take()

    def _starts(self) -> bool:
        try:
            next(self._reading)
        except StopIteration:
            return False
        return True

    def _send(self, text: str) -> None:
        try:
            self._reading.send(text)
        except StopIteration:
            self._over = True

    def _take(self) -> list[Piece]:
        pieces, self._text.found = self._text.found, []
        return merged([piece for piece in pieces if not self._is_surplus(piece)])

    def _is_surplus(self, piece: Piece) -> bool:
        return self._one_call and getattr(piece, "index", 0) > 0


def hermes(text: CallText) -> Reading[None]:
    """Any number of `<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Hermes, Qwen."""
    begin, end = "<tool_call>", "</tool_call>"
    while (yield from text.content_until(begin)):
        num_calls = text.num_calls
        whole = yield from text.call_object()
        if not whole and text.num_calls == num_calls:
            text.say(begin)
            continue
        if whole:
            char = yield from text.next_visible()
            text.unread(char)
            yield from text.starts_with(end)
        elif not (yield from _skip_past(text, end)):
            return


def llama3(text: CallText) -> Reading[None]:
    """`{"name": ..., "parameters": ...}` with `;` between, from the start of the answer or from
    `<|python_tag|>` on: Llama 3.1 and later."""
    begin = "<|python_tag|>"
    first = yield from text.next_visible_after_content()
    if first != "{" and not (yield from text.content_until(begin)):
        return
    while True:
        char = yield from text.next_visible()
        if char == ";":
            continue
        text.unread(char)
        num_calls = text.num_calls
        if char == "{" and (yield from text.call_object()):
            continue
        if text.num_calls == num_calls:
            yield from text.rest_is_content()
        return


def mistral(text: CallText) -> Reading[None]:
    """`[TOOL_CALLS]` and a list of objects, or a name, `[ARGS]` and the arguments: Mistral."""
    begin = "[TOOL_CALLS]"
    while (yield from text.content_until(begin)):
        char = yield from text.next_visible()
        text.unread(char)
        num_calls = text.num_calls
        if char == "[":
            whole = yield from call_list(text)
        elif char == "{":
            whole = yield from text.call_object()
        else:
            whole = yield from _named_call(text)
        if not whole and text.num_calls == num_calls:
            text.say(begin)
        elif not whole:
            return


def _named_call(text: CallText) -> Reading[bool]:
    read = ""
    while (char := (yield from text.next())) not in ("{", END) and len(read) < MAX_NAME_LEN:
        read += char
    text.unread(char)
    name = read.partition("[")[0].strip()
    if char != "{" or not name:
        text.unread(read)
        return False
    return (yield from text.value(text.begin_call(name)))[1]


def call_list(text: CallText) -> Reading[bool]:
    """`[{"name": ..., "arguments": ...}, ...]`; False if it is none or breaks off."""
    char = yield from text.next_visible()
    if char != "[":
        text.unread(char)
        return False
    num_calls = text.num_calls
    while True:
        whole = yield from text.call_object()
        if not whole:
            if text.num_calls == num_calls:
                text.unread("[")
            return False
        if (yield from text.next_visible()) != ",":
            return True


def only_calls(text: CallText) -> Reading[None]:
    """A list of calls and nothing else: what answers are held to if they must call something."""
    if not (yield from call_list(text)) and not text.num_calls:
        yield from text.rest_is_content()


def arguments_of(name: str) -> Format:
    """The whole answer is the arguments of one call: what it is held to if it must call `name`."""

    def read(text: CallText) -> Reading[None]:
        char = yield from text.next_visible()
        if char != END:
            text.unread(char)
            yield from text.value(text.begin_call(name))

    return read


def _skip_past(text: CallText, marker: str) -> Reading[bool]:
    while not (yield from text.starts_with(marker)):
        if (yield from text.next()) == END:
            return False
    return True


FORMATS: dict[str, Format] = {
    "hermes": hermes,
    "qwen": hermes,
    "llama3": llama3,
    "mistral": mistral,
    "pythonic": pythonic,
}
WRITTEN_BY_CONTROL_TOKENS = ("llama3", "mistral")
"""Formats whose marks are control tokens of their models."""
