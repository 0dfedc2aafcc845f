"""State machines that drive the tree and the manager through whatever may happen to them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jaxsgl.cache.check import check_tree
from jaxsgl.cache.eviction import POLICIES, make_policy
from jaxsgl.cache.node import Receipt
from jaxsgl.cache.radix_tree import RadixTree
from tests.cache.checked_cache import CheckedCache, Request
from tests.cache.tree_model import Lock, TreeModel, contents

namespaces = st.sampled_from(["", "", "", "a", "b"])
evictions = st.sampled_from(sorted(POLICIES))
quotas = st.dictionaries(namespaces, st.integers(0, 6), max_size=2)
default_quotas = st.none() | st.integers(0, 6)
page_patterns = st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=1, max_size=6)
"""Few kinds of pages, so that prefixes meet and part often."""
maybe_no_pages = st.just([]) | page_patterns
picks = st.integers(0, 11)


def page_tokens(kind: int, page_size: int) -> tuple[int, ...]:
    """Pages that differ in their first token only, or in their last one only."""
    tokens = [7] * page_size
    tokens[0 if kind == 1 else -1] += kind
    return tuple(tokens)


def sequence(kinds: list[int], page_size: int) -> tuple[int, ...]:
    return tuple(token for kind in kinds for token in page_tokens(kind, page_size))


class TreeMachine(RuleBasedStateMachine):
    """RadixTree against TreeModel. A lock remembers the row of pages its owner would have."""

    @initialize(
        page_size=st.sampled_from([1, 2, 4]),
        eviction=evictions,
        quotas=quotas,
        default_quota=default_quotas,
    )
    def start(
        self, page_size: int, eviction: str, quotas: dict[str, int], default_quota: int | None
    ) -> None:
        self.page_size = page_size
        self.tree = RadixTree(
            page_size, make_policy(eviction, 1000), quotas=quotas, default_quota=default_quota
        )
        self.model = TreeModel(page_size, eviction, quotas, default_quota)
        self.held: list[tuple[Receipt, Lock]] = []
        self.next_page = 0

    @rule(namespace=namespaces, kinds=maybe_no_pages, priority=st.integers(0, 2))
    def lock(self, namespace: str, kinds: list[int], priority: int) -> None:
        tokens = sequence(kinds, self.page_size)
        expected = self.model.match(namespace, tokens)
        receipt, pages = self.tree.lock(namespace, self.as_bytes(tokens), priority)
        assert pages.tolist() == expected
        self.held.append((receipt, self.model.lock(namespace, tokens, priority)))

    @precondition(lambda self: self.held)
    @rule(pick=picks, kinds=page_patterns)
    def insert(self, pick: int, kinds: list[int]) -> None:
        self.insert_behind(*self.held[pick % len(self.held)], sequence(kinds, self.page_size))

    @rule(namespace=namespaces, kinds=page_patterns, priority=st.integers(0, 2))
    def add(self, namespace: str, kinds: list[int], priority: int) -> None:
        """As a request does: lock what is there, then insert the rest."""
        self.lock(namespace, kinds, priority)
        receipt, lock = self.held[-1]
        rest = sequence(kinds, self.page_size)[len(lock.tokens) :]
        self.insert_behind(receipt, lock, rest)

    def insert_behind(self, receipt: Receipt, lock: Lock, tokens: tuple[int, ...]) -> None:
        new = self.fresh_pages(len(tokens) // self.page_size)
        present = self.tree.insert(receipt, self.as_bytes(tokens), new)
        row = [-1] * (len(lock.tokens) // self.page_size) + new.tolist()
        assert present == self.model.insert(lock, lock.tokens + tokens, row)

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def insert_again(self, pick: int) -> None:
        """What the tree has already it does not take, and nothing but the new lock changes."""
        _, lock = self.held[pick % len(self.held)]
        before = contents(self.tree)
        receipt, _ = self.tree.lock(lock.namespace, b"")
        tokens = self.as_bytes(lock.tokens)
        new = self.fresh_pages(len(tokens) // self.tree.page_bytes)
        assert self.tree.insert(receipt, tokens, new) == len(new)
        assert contents(self.tree) == before
        twin = self.model.lock(lock.namespace, ())
        self.model.insert(twin, lock.tokens, [])
        self.held.append((receipt, twin))

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def unlock(self, pick: int) -> None:
        receipt, lock = self.held.pop(pick % len(self.held))
        self.tree.unlock(receipt)
        self.model.unlock(lock)

    @rule(num_pages=st.integers(0, 12))
    def evict(self, num_pages: int) -> None:
        num_evictable = self.tree.num_evictable
        pages = self.tree.evict(num_pages).tolist()
        assert len(pages) == min(num_pages, num_evictable)
        self.model.evict(pages, [lock for _, lock in self.held])

    @rule(namespace=namespaces, kinds=maybe_no_pages)
    def match(self, namespace: str, kinds: list[int]) -> None:
        tokens = sequence(kinds, self.page_size)
        found = self.tree.match(namespace, self.as_bytes(tokens))
        assert found == len(self.model.match(namespace, tokens))

    @invariant()
    def books_agree(self) -> None:
        check_tree(self.tree)
        assert contents(self.tree) == self.model.pages
        protected = self.model.protected(lock for _, lock in self.held)
        assert self.tree.num_protected == len(protected)
        assert self.tree.num_evictable == len(self.model.pages) - len(protected)
        for prefix, page in self.model.pages.items():
            assert self.tree.policy.key(page) == self.model._key(prefix)

    def as_bytes(self, tokens: tuple[int, ...]) -> bytes:
        return np.array(tokens, dtype=np.int32).tobytes()

    def fresh_pages(self, num_pages: int) -> np.ndarray:
        self.next_page += num_pages
        return np.arange(self.next_page - num_pages, self.next_page, dtype=np.int32)


class CacheMachine(RuleBasedStateMachine):
    """Requests that come, grow, publish and go in a pool that is too small for them."""

    @initialize(
        page_size=st.sampled_from([1, 2, 4]),
        num_pages=st.integers(7, 21),
        eviction=evictions,
        quotas=quotas,
        default_quota=default_quotas,
    )
    def start(
        self,
        page_size: int,
        num_pages: int,
        eviction: str,
        quotas: dict[str, int],
        default_quota: int | None,
    ) -> None:
        self.checked = CheckedCache(
            num_pages, page_size, eviction=eviction, quotas=quotas, default_quota=default_quota
        )

    @rule(
        namespace=namespaces,
        kinds=maybe_no_pages,
        tail=st.integers(0, 3),
        max_reuse=st.none() | st.integers(0, 12),
        priority=st.integers(0, 2),
    )
    def open(
        self, namespace: str, kinds: list[int], tail: int, max_reuse: int | None, priority: int
    ) -> None:
        tokens = sequence(kinds, self.checked.page_size) + (9,) * tail
        self.checked.open(namespace, tokens, max_reuse, priority)

    @rule(
        namespace=namespaces,
        kinds=page_patterns,
        tail=st.integers(0, 3),
        priority=st.integers(0, 2),
        kept=st.sampled_from(["published", "closed", "nothing"]),
    )
    def serve(self, namespace: str, kinds: list[int], tail: int, priority: int, kept: str) -> None:
        """A request has its prompt computed at once, or is sent away for lack of pages."""
        self.open(namespace, kinds, tail, None, priority)
        request = self.checked.requests[-1]
        if not self.compute(request, len(request.tokens)):
            self.checked.close(request, None)
        elif kept == "published":
            self.checked.publish(request, request.computed)
        elif kept == "closed":
            self.checked.close(request, request.computed)

    @precondition(lambda self: self.checked.requests)
    @rule(pick=picks, num_tokens=st.integers(1, 30))
    def run(self, pick: int, num_tokens: int) -> None:
        """A step computes some tokens, if there are pages for them."""
        request = self.pick(pick)
        self.compute(request, min(request.computed + num_tokens, len(request.tokens)))

    @precondition(lambda self: self.checked.requests)
    @rule(pick=picks, num_tokens=st.integers(1, 60))
    def reserve(self, pick: int, num_tokens: int) -> None:
        """Pages are taken ahead of the tokens, up to more than there are."""
        request = self.pick(pick)
        self.checked.grow(request, len(request.tokens) + num_tokens)

    @precondition(lambda self: self.checked.requests)
    @rule(pick=picks, kinds=page_patterns)
    def generate(self, pick: int, kinds: list[int]) -> None:
        """A request goes on, publishing what it has as it does."""
        request = self.pick(pick)
        request.tokens += sequence(kinds, self.checked.page_size)
        if self.compute(request, len(request.tokens)):
            self.checked.publish(request, request.computed)

    @precondition(lambda self: self.checked.requests)
    @rule(pick=picks, held_back=st.integers(0, 5))
    def publish(self, pick: int, held_back: int) -> None:
        request = self.pick(pick)
        self.checked.publish(request, max(0, request.computed - held_back))

    @precondition(lambda self: self.checked.requests)
    @rule(pick=picks, held_back=st.integers(0, 5))
    def close(self, pick: int, held_back: int) -> None:
        request = self.pick(pick)
        self.checked.close(request, max(0, request.computed - held_back))

    @precondition(lambda self: self.checked.requests)
    @rule(pick=picks)
    def drop(self, pick: int) -> None:
        self.checked.close(self.pick(pick), None)

    @rule(namespace=namespaces, kinds=maybe_no_pages, tail=st.integers(0, 1))
    def match(self, namespace: str, kinds: list[int], tail: int) -> None:
        self.checked.match(namespace, sequence(kinds, self.checked.page_size) + (9,) * tail)

    @rule(everything=st.sampled_from([False, False, False, True]))
    def forget(self, everything: bool) -> None:
        if everything:
            self.checked.reset()
        else:
            self.checked.clear()

    def teardown(self) -> None:
        if hasattr(self, "checked"):
            self.checked.finish()

    def compute(self, request: Request, num_tokens: int) -> bool:
        """Whether there were pages for it."""
        room = self.checked.grow(request, num_tokens)
        if room:
            self.checked.compute(request, num_tokens)
        return room

    def pick(self, pick: int) -> Request:
        return self.checked.requests[pick % len(self.checked.requests)]
