"""The parts of the standard library's `re` that have no public name.

Patterns are given the meaning of Python's own matcher, so they are read by its parser and letters
are compared by its tables. Python is pinned to the version that this was written for.
"""

from __future__ import annotations

import _sre  # pyright: ignore[reportMissingImports]
import re._casefix as _casefix  # pyright: ignore[reportMissingImports]
import re._constants as _constants  # pyright: ignore[reportMissingImports]
import re._parser as _parser  # pyright: ignore[reportMissingImports]
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

op: Any = _constants
"""Names of what a parsed pattern consists of."""

_private: Any = _sre
unicode_tolower: Callable[[int], int] = _private.unicode_tolower
"""The code point that IGNORECASE compares a code point as."""

_cases: Any = _casefix
EXTRA_CASES: Mapping[int, tuple[int, ...]] = _cases._EXTRA_CASES
"""Code points -> others that IGNORECASE takes for equal beside those."""

_reader: Any = _parser

type Item = tuple[Any, Any]
"""An operation and its argument."""


class Parsed(Protocol):
    """A parsed sequence."""

    state: Any

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...

    def __getitem__(self, index: int) -> Item: ...

    def getwidth(self) -> tuple[int, int]:
        """The least and the largest number of characters it matches."""
        ...


def parse(pattern: str, flags: int = 0) -> Parsed:
    """Raises re.error, OverflowError or RecursionError."""
    return _reader.parse(pattern, flags)


def sequence(like: Parsed, items: list[Item]) -> Parsed:
    """Some items of a parsed pattern as a sequence of their own."""
    return _reader.SubPattern(like.state, items)
