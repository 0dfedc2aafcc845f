"""One JSON value, followed character by character, that can be brought to an end at any time."""

from __future__ import annotations

import re
from enum import Enum, auto

_BLANKS = " \t\r\n"
_HEX = "0123456789abcdefABCDEF"
AS_THEY_ARE = re.compile(r'[^"\\\x00-\x1f]+')
"""Characters that `JsonStream.push` gives back in a string, and that change nothing there."""
_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}
_MAX_DEPTH = 200


class _At(Enum):
    VALUE = auto()
    FIRST_ITEM = auto()
    """Behind `[`."""
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    AFTER = auto()
    """Behind a value: `,` or the end of what holds it."""
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    LITERAL = auto()
    NUMBER = auto()
    DONE = auto()


_NUMBER_MOVES = {
    "-": {"0": "0"} | dict.fromkeys("123456789", "9"),
    "0": {".": ".", "e": "e", "E": "e"},
    "9": dict.fromkeys("0123456789", "9") | {".": ".", "e": "e", "E": "e"},
    ".": dict.fromkeys("0123456789", "f"),
    "f": dict.fromkeys("0123456789", "f") | {"e": "e", "E": "e"},
    "e": dict.fromkeys("0123456789", "x") | {"+": "+", "-": "+"},
    "+": dict.fromkeys("0123456789", "x"),
    "x": dict.fromkeys("0123456789", "x"),
}
"""State of a number -> character -> state."""
_NUMBER_STARTS = {"-": "-", "0": "0"} | dict.fromkeys("123456789", "9")
_WHOLE_NUMBERS = "09fx"


class JsonStream:
    """What `push` returned, joined, and `closing()` behind it are one valid JSON value.

    Commas come out with what follows them, and control characters in strings are escaped: models
    write line breaks there.
    """

    def __init__(self) -> None:
        self._at = _At.VALUE
        self._open: list[str] = []
        self._held = ""
        """A comma and white space behind it."""
        self._is_key = False
        self._rest = ""
        """Of a literal."""
        self._num_hex = 0
        self._number = ""

    @property
    def done(self) -> bool:
        """Whether the value is complete. A number alone is so only with what follows it."""
        return self._at is _At.DONE

    @property
    def is_in_string(self) -> bool:
        """Whether `push` may be spared what matches AS_THEY_ARE."""
        return self._at is _At.STRING

    def push(self, char: str) -> str | None:
        """The text that the next character brings; None if it does not belong to the value, of
        which nothing is changed then but that a number may be complete."""
        match self._at:
            case _At.STRING:
                return self._in_string(char)
            case _At.ESCAPE:
                return self._in_escape(char)
            case _At.HEX:
                return self._in_hex(char)
            case _At.LITERAL:
                return self._in_literal(char)
            case _At.NUMBER:
                after = _NUMBER_MOVES[self._number].get(char)
                if after is not None:
                    self._number = after
                    return char
                if self._number not in _WHOLE_NUMBERS:
                    return None
                self._end_value()
                return None if self.done else self.push(char)
            case _At.DONE:
                return None
            case _:
                return self._between(char)

    def closing(self) -> str:
        """The least that makes the value whole."""
        match self._at:
            case _At.STRING:
                text = '"'
            case _At.ESCAPE:
                text = '\\"'
            case _At.HEX:
                text = "0" * self._num_hex + '"'
            case _At.LITERAL:
                text = self._rest
            case _At.NUMBER:
                text = "" if self._number in _WHOLE_NUMBERS else "0"
            case _At.COLON:
                text = ":null"
            case _At.VALUE:
                text = "" if self._held else "null"  # a comma that is held never came out
            case _:
                text = ""
        if self._is_key and self._at in (_At.STRING, _At.ESCAPE, _At.HEX):
            text += ":null"
        return text + "".join("}" if each == "{" else "]" for each in reversed(self._open))

    def _between(self, char: str) -> str | None:
        if char in _BLANKS:
            if self._held:
                self._held += char
                return ""
            return char
        at = self._at
        if at is _At.AFTER and char == ",":
            self._held = ","
            self._at = _At.KEY if self._open[-1] == "{" else _At.VALUE
            return ""
        if char in "}]":
            return self._close(char)
        if at in (_At.KEY, _At.FIRST_KEY):
            return self._begin_string(is_key=True) if char == '"' else None
        if at is _At.COLON:
            if char != ":":
                return None
            self._at = _At.VALUE
            return char
        return self._begin_value(char) if at in (_At.VALUE, _At.FIRST_ITEM) else None

    def _begin_value(self, char: str) -> str | None:
        if char == '"':
            return self._begin_string(is_key=False)
        if char in "{[":
            if len(self._open) == _MAX_DEPTH:
                return None
            self._open.append(char)
            self._at = _At.FIRST_KEY if char == "{" else _At.FIRST_ITEM
        elif char in _LITERALS:
            self._at, self._rest = _At.LITERAL, _LITERALS[char]
        elif char in _NUMBER_STARTS:
            self._at, self._number = _At.NUMBER, _NUMBER_STARTS[char]
        else:
            return None
        return self._take_held() + char

    def _begin_string(self, *, is_key: bool) -> str:
        self._at, self._is_key = _At.STRING, is_key
        return self._take_held() + '"'

    def _take_held(self) -> str:
        held, self._held = self._held, ""
        return held

    def _close(self, char: str) -> str | None:
        opened = "{" if char == "}" else "["
        first = _At.FIRST_KEY if char == "}" else _At.FIRST_ITEM
        if self._at not in (_At.AFTER, first) or not self._open or self._open[-1] != opened:
            return None
        self._open.pop()
        self._end_value()
        return char

    def _end_value(self) -> None:
        self._at = _At.AFTER if self._open else _At.DONE

    def _in_string(self, char: str) -> str | None:
        if char == '"':
            if self._is_key:
                self._at = _At.COLON
            else:
                self._end_value()
        elif char == "\\":
            self._at = _At.ESCAPE
        elif char < " ":
            return f"\\u{ord(char):04x}"
        return char

    def _in_escape(self, char: str) -> str | None:
        if char == "u":
            self._at, self._num_hex = _At.HEX, 4
        elif char in '"\\/bfnrt':
            self._at = _At.STRING
        else:
            return None
        return char

    def _in_hex(self, char: str) -> str | None:
        if char not in _HEX:
            return None
        self._num_hex -= 1
        if not self._num_hex:
            self._at = _At.STRING
        return char

    def _in_literal(self, char: str) -> str | None:
        if char != self._rest[0]:
            return None
        self._rest = self._rest[1:]
        if not self._rest:
            self._end_value()
        return char
