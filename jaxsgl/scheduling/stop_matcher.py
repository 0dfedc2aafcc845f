"""Finds what ends an answer in a stream of bytes that arrives token by token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from jaxsgl.grammar.pattern_dfa import DEAD, PatternDfa, State


class _Found(NamedTuple):
    begin: int
    end: int
    name: str


class StopMatcher:
    """Lets bytes through until one of `stops` or of `patterns` appears, holding back what might
    begin one.

    Stops match wherever they fall, across tokens and inside characters' bytes. Where several match,
    the one that begins first wins, then the longer one. A pattern matches where its first match
    is complete.
    """

    __slots__ = ("_begins", "_held", "_keep", "_patterns", "_stops", "_texts")

    def __init__(
        self, stops: tuple[str, ...], patterns: tuple[PatternDfa, ...] = (), *, keep: bool = False
    ) -> None:
        """`keep`: let the stop itself through."""
        # Longest first, so that of two stops beginning at the same byte the longer is found.
        self._texts = sorted(stops, key=len, reverse=True)
        self._stops = [text.encode() for text in self._texts]
        firsts = sorted({re.escape(stop[:1]) for stop in self._stops})
        self._begins = re.compile(b"|".join(firsts))
        self._patterns = [_PatternSearch(dfa) for dfa in patterns]
        self._keep = keep
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, str | None]:
        """Return the bytes that are now certainly text, and the stop that was completed, if any.

        After a stop nothing more may be fed; the stop and what follows it are dropped.
        """
        if not (self._held or self._patterns or self._begins.search(data)):
            return data, None
        text = self._held + data
        found = min(self._found(text, data), key=lambda each: (each.begin, -each.end), default=None)
        if found is not None:
            self._held = b""
            return text[: found.end if self._keep else found.begin], found.name
        keep = self._longest_beginning(text)
        for pattern in self._patterns:
            keep = max(keep, pattern.open_len)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self) -> bytes:
        """The bytes still held back, when the answer ends for another reason."""
        held, self._held = self._held, b""
        return held

    def _found(self, text: bytes, data: bytes) -> Iterator[_Found]:
        begin = len(text)
        for stop, name in zip(self._stops, self._texts, strict=True):
            at = text.find(stop, 0, begin + len(stop) - 1)
            if 0 <= at < begin:
                begin = at
                yield _Found(at, at + len(stop), name)
        for search in self._patterns:
            match = search.feed(data)
            if match is not None:
                end = len(self._held) + match[1]
                yield _Found(end - match[0], end, search.pattern)

    def _longest_beginning(self, text: bytes) -> int:
        """Length of the longest suffix of `text` that is a proper prefix of some stop."""
        longest = 0
        for stop in self._stops:
            at = text.find(stop[:1], max(0, len(text) - len(stop) + 1))
            while 0 <= at < len(text) - longest:
                if stop.startswith(text[at:]):
                    longest = len(text) - at
                at = text.find(stop[:1], at + 1)
        return longest


class _PatternSearch:
    """Follows a pattern from every byte on at which a match may begin."""

    __slots__ = ("_dfa", "_open", "_position", "pattern")

    def __init__(self, dfa: PatternDfa) -> None:
        self.pattern = dfa.pattern
        self._dfa = dfa
        self._position = 0
        self._open: dict[State, int] = {}
        """Where matches that are not complete may have begun, the earliest for each state."""

    @property
    def open_len(self) -> int:
        """How many of the last bytes a match may yet claim."""
        return self._position - min(self._open.values(), default=self._position)

    def feed(self, data: bytes) -> tuple[int, int] | None:
        """The length of the first match that is complete, and how many bytes of `data` lie before
        its end. Of several that end there, the longest."""
        dfa = self._dfa
        for index, byte in enumerate(data):
            self._open.setdefault(dfa.start, self._position)
            self._position += 1
            after: dict[State, int] = {}
            for state, begin in self._open.items():
                moved = dfa.step(state, byte)
                if moved != DEAD:
                    after[moved] = min(begin, after.get(moved, begin))
            self._open = after
            ended = [begin for state, begin in after.items() if dfa.accepts(state)]
            if ended:
                return self._position - min(ended), index + 1
        return None
