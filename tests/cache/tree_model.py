"""What a radix tree must hold, said as plainly as possible: a dictionary from prefixes to pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxsgl.cache.node import Node
from jaxsgl.cache.radix_tree import RadixTree

Prefix = tuple[str, tuple[int, ...]]
"""A namespace, and the tokens of one or more whole pages."""


@dataclass
class Use:
    """When, how often and how urgently a cached page was used."""

    last: int
    count: int
    priority: int


@dataclass
class Lock:
    namespace: str
    tokens: tuple[int, ...]
    priority: int


class TreeModel:
    """Keeps no tree. Every question is answered by looking at all prefixes."""

    def __init__(
        self,
        page_size: int,
        eviction: str = "lru",
        quotas: Mapping[str, int] | None = None,
        default_quota: int | None = None,
    ) -> None:
        self.page_size = page_size
        self.eviction = eviction
        self.quotas = dict(quotas or {})
        self.default_quota = default_quota
        self.pages: dict[Prefix, int] = {}
        self.uses: dict[Prefix, Use] = {}
        self.clock = 0

    # -- What the tree is asked to do.

    def match(self, namespace: str, tokens: tuple[int, ...]) -> list[int]:
        """The pages of the longest cached prefix."""
        found = []
        for prefix in self.prefixes(namespace, tokens):
            if prefix not in self.pages:
                break
            found.append(self.pages[prefix])
        return found

    def lock(self, namespace: str, tokens: tuple[int, ...], priority: int = 0) -> Lock:
        depth = len(self.match(namespace, tokens)) * self.page_size
        lock = Lock(namespace, tokens[:depth], priority)
        self.clock += 1
        for prefix in self.prefixes(namespace, lock.tokens):
            use = self.uses[prefix]
            use.last = self.clock
            use.count += 1
            use.priority = max(use.priority, priority)
        return lock

    def insert(self, lock: Lock, tokens: tuple[int, ...], row: list[int]) -> int:
        """Extend a lock to `tokens`, whose pages are `row`; the pages present already beyond it."""
        prefixes = self.prefixes(lock.namespace, tokens)
        new = [i for i, prefix in enumerate(prefixes) if prefix not in self.pages]
        self.clock += bool(new)
        for i in new:
            self.pages[prefixes[i]] = row[i]
            self.uses[prefixes[i]] = Use(self.clock, 1, lock.priority)
        num_present = len(prefixes) - len(new) - len(lock.tokens) // self.page_size
        lock.tokens = max(lock.tokens, self._whole(tokens), key=len)
        return num_present

    def unlock(self, lock: Lock) -> None:
        self.clock += 1
        for prefix in self.prefixes(lock.namespace, lock.tokens):
            self.uses[prefix].last = self.clock

    def evict(self, pages: Iterable[int], locks: Iterable[Lock]) -> None:
        """Drop these pages, asserting that one after the other they were the ones to go first."""
        protected = self.protected(locks)
        gone = {prefix for prefix, page in self.pages.items() if page in set(pages)}
        assert len(gone) == len(list(pages)), "evicted pages that the tree did not hold"
        assert not gone & protected, f"evicted under a lock: {gone & protected}"
        while gone:
            first = gone & self._first_to_go(protected)
            assert first, f"evicted out of turn: {gone}, before {self._first_to_go(protected)}"
            for prefix in list(first)[:1]:
                gone.remove(prefix)
                del self.pages[prefix], self.uses[prefix]

    # -- What follows from it.

    def prefixes(self, namespace: str, tokens: tuple[int, ...]) -> list[Prefix]:
        """All whole-page prefixes, the shortest first."""
        ends = range(self.page_size, len(tokens) + 1, self.page_size)
        return [(namespace, tokens[:end]) for end in ends]

    def protected(self, locks: Iterable[Lock]) -> set[Prefix]:
        return {p for lock in locks for p in self.prefixes(lock.namespace, lock.tokens)}

    def _whole(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return tokens[: len(tokens) // self.page_size * self.page_size]

    def _key(self, prefix: Prefix) -> tuple[int, ...]:
        use = self.uses[prefix]
        ranks = {
            "lru": (use.last,),
            "lfu": (use.count, use.last),
            "priority": (use.priority, use.last),
        }
        return ranks[self.eviction]

    def _first_to_go(self, protected: set[Prefix]) -> set[Prefix]:
        """The prefixes that may be evicted next: one, unless there is a tie."""
        parents = {(name, tokens[: -self.page_size]) for name, tokens in self.pages}
        tails = self.pages.keys() - parents - protected
        excess = {name: self._excess(name) for name, _ in tails}
        largest = max(excess.values(), default=0)
        if largest == 0:
            return self._smallest(tails)
        choices = [name for name in excess if excess[name] == largest]
        return {p for name in choices for p in self._smallest({t for t in tails if t[0] == name})}

    def _smallest(self, tails: Iterable[Prefix]) -> set[Prefix]:
        least = min((self._key(tail) for tail in tails), default=())
        return {tail for tail in tails if self._key(tail) == least}

    def _excess(self, namespace: str) -> int:
        quota = self.quotas.get(namespace, self.default_quota)
        held = sum(name == namespace for name, _ in self.pages)
        return 0 if quota is None else max(0, held - quota)


def contents(tree: RadixTree) -> dict[Prefix, int]:
    """Every cached prefix of a real tree and the page that ends it."""
    found: dict[Prefix, int] = {}

    def visit(name: str, node: Node, before: tuple[int, ...]) -> None:
        tokens = before + tuple(memoryview(node.tokens).cast("i"))
        for i, page in enumerate(node.pages.tolist()):
            end = len(before) + (i + 1) * tree.page_bytes // 4
            found[name, tokens[:end]] = page
        for child in node.children.values():
            visit(name, child, tokens)

    for name, namespace in tree.namespaces.items():
        visit(name, namespace.root, ())
    return found


def shape(tree: RadixTree) -> set[Prefix]:
    """Where the edges of a tree end: equal for trees that differ only in pages and ages."""
    found: set[Prefix] = set()

    def visit(name: str, node: Node, before: bytes) -> None:
        tokens = before + node.tokens
        found.add((name, tuple(memoryview(tokens).cast("i"))))
        for child in node.children.values():
            visit(name, child, tokens)

    for name, namespace in tree.namespaces.items():
        visit(name, namespace.root, b"")
    return found
