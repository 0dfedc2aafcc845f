"""What a cache that never loses a page would have of each prompt. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class IdealCache:
    """A tree of whole pages, as a table of (parent, page)."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._nodes: dict[tuple[int, tuple[int, ...]], int] = {}

    def look_up(self, tokens: Sequence[int]) -> int:
        """Tokens at the beginning that are there; never all, since one is computed for its
        logits."""
        node, num_found = 0, 0
        for page in self._pages(tokens):
            child = self._nodes.get((node, page))
            if child is None:
                break
            node, num_found = child, num_found + self._page_size
        return min(num_found, len(tokens) - 1)

    def insert(self, tokens: Sequence[int]) -> None:
        node = 0
        for page in self._pages(tokens):
            node = self._nodes.setdefault((node, page), len(self._nodes) + 1)

    def _pages(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        size = self._page_size
        return [tuple(tokens[n : n + size]) for n in range(0, len(tokens) - size + 1, size)]
