"""Reads text as it comes, and takes tool calls out of it.

Readers are generators that are sent text, a piece at a time: the code of a format reads like that
of a parser with the whole text before it. Whatever the pieces in which a text comes, its reader
sees the same characters, one by one or in runs, and says the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from functools import cache
from typing import Any

from server.tools.json_stream import AS_THEY_ARE, JsonStream
from server.tools.pieces import CallArguments, CallBegin, Content, Piece

END = ""
"""What is read behind the last character."""
BLANKS = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
_ANYTHING = re.compile(".+", re.DOTALL)

type Reading[T] = Generator[None, str, T]


class CallText:
    """The text of one answer: what is read of it, and what has been found."""

    def __init__(self) -> None:
        self.found: list[Piece] = []
        self.num_calls = 0
        self._returned: list[str] = []
        self._blanks: list[str] = []
        """White space that comes out if content follows."""
        self._ahead = ""
        """The piece of the text that came last, ..."""
        self._at = 0
        """... read up to here."""

    # Characters.

    def next(self) -> Reading[str]:
        """The next character, or END, again and again."""
        if self._returned:
            return self._returned.pop()
        if self._at == len(self._ahead):
            self._ahead, self._at = (yield), 0
            if self._ahead == END:
                return END
        self._at += 1
        return self._ahead[self._at - 1]

    def run(self, characters: re.Pattern[str]) -> str:
        """What comes next of such characters, as far as it has come already; may be nothing."""
        if self._returned or (match := characters.match(self._ahead, self._at)) is None:
            return ""
        self._at = match.end()
        return match[0]

    def unread(self, text: str) -> None:
        """These characters are to be read again."""
        self._returned.extend(reversed(text))

    def next_visible(self) -> Reading[str]:
        """The next character that is no white space."""
        while True:
            char = yield from self.next()
            if char == END or char not in BLANKS:
                return char

    def starts_with(self, text: str) -> Reading[bool]:
        """Read `text` if it comes next; else nothing."""
        for index, wanted in enumerate(text):
            char = yield from self.next()
            if char != wanted:
                self.unread(text[:index] + char)
                return False
        return True

    # Content.

    def say(self, text: str) -> None:
        """This is content. White space at the end of it waits for what follows."""
        core = text.rstrip(BLANKS)
        if core:
            self.found += map(Content, [*self._blanks, core])
            self._blanks.clear()
        if len(core) < len(text):
            self._blanks.append(text[len(core) :])

    def content_until(self, marker: str) -> Reading[bool]:
        """Hand out text up to `marker`, and read that; False if the text ends before."""
        others = _all_but(marker[0])
        while True:
            if text := self.run(others):
                self.say(text)
            if (yield from self.starts_with(marker)):
                self._blanks.clear()
                return True
            char = yield from self.next()
            if char == END:
                return False
            self.say(char)

    def next_visible_after_content(self) -> Reading[str]:
        """Look at the next character that is no white space; white space before it is content."""
        while True:
            char = yield from self.next()
            if char == END or char not in BLANKS:
                self.unread(char)
                return char
            self.say(char)

    def rest_is_content(self) -> Reading[None]:
        while (char := (yield from self.next())) != END:
            self.say(char + self.run(_ANYTHING))

    def end(self) -> None:
        """The text is over: with calls in it, white space at its end is nobody's."""
        if not self.num_calls:
            self.found += map(Content, self._blanks)
        self._blanks.clear()

    # Calls.

    def begin_call(self, name: str) -> int:
        index = self.num_calls
        self.num_calls += 1
        self._blanks.clear()
        self.found.append(CallBegin(index, name))
        return index

    def argue(self, index: int, text: str) -> None:
        self.found.append(CallArguments(index, text))

    def value(self, index: int | None) -> Reading[tuple[str, bool]]:
        """Read one JSON value; its text, and whether it is whole.

        With `index` it is handed out as the arguments of that call, and brought to an end where it
        is not whole.
        """
        stream, texts = JsonStream(), list[str]()
        while not stream.done:
            text = self.run(AS_THEY_ARE) if stream.is_in_string else None
            if not text:
                char = yield from self.next()
                text = None if char == END else stream.push(char)
                if text is None:
                    if char != END:
                        self.unread(char)
                    break
            texts.append(text)
            if index is not None:
                self.argue(index, text)
        if not stream.done and index is not None:
            self.argue(index, stream.closing())
        return "".join(texts), stream.done

    def call_object(self) -> Reading[bool]:
        """Read `{"name": ..., "arguments": {...}}` from its brace on, members in any order.

        False if it is no such thing: then either nothing of it was handed out and all of it is
        to be read again, or the call was begun and what is left of it is for the caller to skip.
        """
        call = _CallObject(self)
        whole = yield from call.read()
        if not whole and call.index is None:
            self.unread(call.text)
        return whole


class _CallObject:
    def __init__(self, source: CallText) -> None:
        self._source = source
        self.index: int | None = None
        """Of the call, once it was begun."""
        self.text = ""
        """What was read of it, as it was written."""
        self._name: str | None = None
        self._arguments: str | None = None
        """Those that came before the name."""
        self._has_arguments = False

    def read(self) -> Reading[bool]:
        char = yield from self._next_visible()
        if char != "{":
            return False
        char = yield from self._next_visible()
        while char != "}":
            if char != '"':
                return False
            self._unread(char)
            key, whole = yield from self._value(None)
            if not whole or (yield from self._next_visible()) != ":":
                return False
            if not (yield from self._member(json.loads(key))):
                return False
            char = yield from self._next_visible()
            if char == ",":
                char = yield from self._next_visible()
                if char == "}":
                    return False
        if self._name is None:
            return False
        if self.index is None:
            self._begin(self._arguments or "{}")
        elif not self._has_arguments:
            self._source.argue(self.index, "{}")
        return True

    def _member(self, key: str) -> Reading[bool]:
        first = yield from self._next_visible()
        if first == END:
            return False
        self._unread(first)
        if key in _ARGUMENTS and not self._has_arguments:
            return (yield from self._read_arguments(first))
        text, whole = yield from self._value(None)
        if whole and key == "name" and self._name is None:
            if not text.startswith('"') or text == '""':
                return False
            self._name = json.loads(text)
            if self._has_arguments:
                self._begin(self._arguments or "{}")
        return whole

    def _read_arguments(self, first: str) -> Reading[bool]:
        self._has_arguments = True
        if first == "{" and self._name is not None:
            self._begin("")
            return (yield from self._value(self.index))[1]
        text, whole = yield from self._value(None)
        self._arguments = _object_text(text) if whole else None
        if self._arguments is None:
            return False
        if self._name is not None:
            self._begin(self._arguments)
        return True

    def _begin(self, arguments: str) -> None:
        assert self._name is not None
        self.index = self._source.begin_call(self._name)
        if arguments:
            self._source.argue(self.index, arguments)

    # Reading that remembers what was read.

    def _next_visible(self) -> Reading[str]:
        while True:
            char = yield from self._source.next()
            self.text += char
            if char == END or char not in BLANKS:
                return char

    def _unread(self, char: str) -> None:
        self._source.unread(char)
        self.text = self.text[: -len(char)]

    def _value(self, index: int | None) -> Reading[tuple[str, bool]]:
        recorder = _Recorder(self._source)
        result = yield from recorder.value(index)
        self.text += recorder.text
        return result


class _Recorder(CallText):
    """Reads from another text, and remembers what."""

    def __init__(self, source: CallText) -> None:
        super().__init__()
        self._source = source
        self.text = ""

    def argue(self, index: int, text: str) -> None:
        self._source.argue(index, text)

    def next(self) -> Reading[str]:
        char = yield from self._source.next()
        self.text += char
        return char

    def run(self, characters: re.Pattern[str]) -> str:
        text = self._source.run(characters)
        self.text += text
        return text

    def unread(self, text: str) -> None:
        self._source.unread(text)
        self.text = self.text[: len(self.text) - len(text)]


@cache
def _all_but(char: str) -> re.Pattern[str]:
    return re.compile(f"[^{re.escape(char)}]+")


def _object_text(text: str) -> str | None:
    """Arguments as the text of an object: as they are, out of a string, or for null."""
    try:
        value: Any = json.loads(text)
        if isinstance(value, str):
            text, value = value, json.loads(value)
    except (ValueError, RecursionError):
        return None
    if value is None:
        return "{}"
    return text if isinstance(value, dict) else None
