"""Which prefixes came into a radix tree and left it since somebody last asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class JournalEntry(NamedTuple):
    added: list[bytes]
    dropped: list[bytes]
    cleared: bool
    """Everything from before is gone; `added` came after that."""


class PrefixJournal:
    """Knows each cached page by the name of the prefix that it ends (`page_hash`).

    Only net changes are kept: what came and went between two readings is not told.
    """

    def __init__(self) -> None:
        self._names: dict[int, bytes] = {}
        """By page, of the cached pages."""
        self._added: set[bytes] = set()
        self._dropped: set[bytes] = set()
        self._cleared = False

    def add(self, pages: NDArray[np.int32], names: Sequence[bytes]) -> None:
        """`pages` are cached now, under these names."""
        for page, name in zip(pages.tolist(), names, strict=True):
            self._names[page] = name
            if name in self._dropped:
                self._dropped.remove(name)
            else:
                self._added.add(name)

    def drop(self, pages: NDArray[np.int32]) -> None:
        """`pages` are not cached any more. Those cached before the journal began are ignored."""
        for page in pages.tolist():
            name = self._names.pop(page, None)
            if name is None:
                continue
            if name in self._added:
                self._added.remove(name)
            else:
                self._dropped.add(name)

    def clear(self) -> None:
        """Nothing is cached any more."""
        self._names.clear()
        self._added.clear()
        self._dropped.clear()
        self._cleared = True

    def take(self) -> JournalEntry | None:
        """What changed since the last call; None if nothing did."""
        if not (self._added or self._dropped or self._cleared):
            return None
        entry = JournalEntry(list(self._added), list(self._dropped), self._cleared)
        self._added, self._dropped, self._cleared = set(), set(), False
        return entry
