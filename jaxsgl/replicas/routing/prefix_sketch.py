"""What a front knows of the prefixes that one replica has cached, or is about to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class PrefixSketch:
    """Names of prefixes (`cache.page_hash`): those that the replica said it has, and those of
    prompts that are on their way through it."""

    def __init__(self) -> None:
        self._cached: set[bytes] = set()
        self._coming: Counter[bytes] = Counter()
        """How many prompts under way will leave it there."""

    def __len__(self) -> int:
        """Prefixes that the replica has."""
        return len(self._cached)

    def change(self, added: Iterable[bytes], dropped: Iterable[bytes], cleared: bool) -> None:
        """Take in what the replica tells."""
        if cleared:
            self._cached.clear()
        self._cached.difference_update(dropped)
        self._cached.update(added)

    def expect(self, names: Sequence[bytes]) -> None:
        """A prompt of these prefixes was sent to the replica."""
        if names:  # which would take a while to find out
            self._coming.update(names)

    def expect_no_more(self, names: Iterable[bytes]) -> None:
        """Take back one `expect`: what became of the prompt is known by now."""
        for name in names:
            if self._coming[name] == 1:
                del self._coming[name]
            else:
                self._coming[name] -= 1

    def num_cached(self, names: Sequence[bytes]) -> int:
        """How many of a prompt's prefixes, shortest first, are there or coming."""
        for count, name in enumerate(names):
            if name not in self._cached and name not in self._coming:
                return count
        return len(names)
