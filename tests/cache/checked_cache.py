"""A cache manager on a make-believe device, checked in full after everything that happens to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxsgl.cache.errors import LeaseError
from jaxsgl.cache.manager import KVCacheManager, Lease
from jaxsgl.step import SCRATCH_PAGE
from tests.cache.tree_model import Lock, Prefix, TreeModel, contents

Tokens = tuple[int, ...]


@dataclass(eq=False)
class Request:
    """One sequence and what it holds."""

    namespace: str
    tokens: Tokens
    lease: Lease
    lock: Lock
    computed: int
    """Tokens with KV on the device."""
    private: set[int] = field(default_factory=set)

    @property
    def row(self) -> list[int]:
        return self.lease.pages.tolist()


def refused(reason: str, use: Callable[..., object], *args: object) -> None:
    """Assert that a dead lease cannot be used this way."""
    try:
        use(*args)
    except LeaseError as error:
        assert reason in str(error)
    else:
        raise AssertionError(f"a lease that is {reason} was used")


class CheckedCache:
    """Does what a scheduler does to a KVCacheManager, and asserts what must hold.

    The KV of a token is, here, the namespace and all tokens up to it. `device` keeps it by page and
    offset, so that a page which is stale, somebody else's or misplaced shows by what is in it.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        eviction: str = "lru",
        quotas: Mapping[str, int] | None = None,
        default_quota: int | None = None,
    ) -> None:
        self.page_size = page_size
        self.num_pages = num_pages
        self.cache = KVCacheManager(
            num_pages,
            page_size,
            eviction=eviction,
            quotas=quotas,
            default_quota=default_quota,
        )
        self.model = TreeModel(page_size, eviction, quotas, default_quota)
        self.device: dict[tuple[int, int], Prefix] = {}
        self.requests: list[Request] = []

    # -- What a scheduler does.

    def open(
        self, namespace: str, tokens: Tokens, max_reuse: int | None = None, priority: int = 0
    ) -> Request:
        limit = len(tokens) if max_reuse is None else min(max_reuse, len(tokens))
        reusable = tokens[: max(0, limit)]
        expected = self.model.match(namespace, reusable)
        lease = self.cache.open(namespace, tokens, max_reuse=max_reuse, priority=priority)
        assert lease.shared_len == len(expected) * self.page_size <= max(0, limit)
        assert lease.num_reused == max(0, min(lease.shared_len, len(tokens) - 1))
        assert lease.pages.tolist() == expected
        lock = self.model.lock(namespace, reusable, priority)
        request = Request(namespace, tokens, lease, lock, lease.num_reused)
        self._check_kv(request)
        self.requests.append(request)
        self.verify()
        return request

    def match(self, namespace: str, tokens: Tokens) -> int:
        before = self._snapshot()
        matched = self.cache.match_len(namespace, tokens)
        expected = self.model.match(namespace, tokens)
        assert matched == max(0, min(len(expected) * self.page_size, len(tokens) - 1))
        assert self._snapshot() == before, "a look-up changed something"
        return matched

    def grow(self, request: Request, num_tokens: int) -> bool:
        before, row = self._snapshot(), request.row
        num_new = max(0, -(-num_tokens // self.page_size) - len(row))
        new_pages = self.cache.grow(request.lease, num_tokens)
        if new_pages is None:
            assert num_new > self.cache.num_free + self.cache.num_cached, "refused with room left"
            assert self._snapshot() == before and request.row == row, "a refusal changed something"
            return False
        new = new_pages.tolist()
        assert len(new) == num_new and request.row == row + new
        assert len(new) == len(set(new)) and SCRATCH_PAGE not in new
        num_free = self.num_pages - 1 - len(self.model.pages) - self.num_private
        self._note_evictions(max(0, num_new - num_free))
        assert not set(new) & self._owned(), "a page was given out that has an owner"
        request.private.update(new)
        self.verify()
        return True

    def compute(self, request: Request, num_tokens: int) -> None:
        """Write the KV of tokens up to `num_tokens`, which the row has room for; what is shared is
        computed without being written."""
        for position in range(max(request.computed, request.lease.shared_len), num_tokens):
            page = int(request.lease.pages[position // self.page_size])
            assert page in request.private, "wrote to a page that is not this request's own"
            kv = request.namespace, request.tokens[: position + 1]
            self.device[page, position % self.page_size] = kv
        request.computed = max(request.computed, num_tokens)

    def publish(self, request: Request, num_tokens: int) -> None:
        assert num_tokens <= request.computed
        row = request.row
        self.cache.publish(request.lease, request.tokens[:num_tokens])
        assert request.row == row, "publishing changed the row"
        self._note_insertion(request, num_tokens)
        self.verify()

    def close(self, request: Request, num_tokens: int | None) -> None:
        """End a request, keeping its first `num_tokens` tokens if given."""
        row = request.row
        kept = None if num_tokens is None else request.tokens[:num_tokens]
        self.cache.close(request.lease, kept)
        if num_tokens is not None:
            self._note_insertion(request, num_tokens, row)
        self.model.unlock(request.lock)
        self.requests.remove(request)
        self._check_dead(request, "closed")
        refused("closed", self.cache.close, request.lease, kept)
        self.verify()

    def clear(self) -> None:
        num_cached = self.cache.num_cached
        assert self.cache.clear() == num_cached
        self._note_evictions(num_cached)
        assert self.cache.num_cached == 0
        self.verify()

    def reset(self) -> None:
        lost, self.requests = self.requests, []
        self.cache.reset()
        self.model.pages.clear()
        self.model.uses.clear()
        self.device.clear()
        for request in lost:
            self._check_dead(request, "lost")
            self.cache.close(request.lease, request.tokens)
            self._check_dead(request, "closed")
        self.verify()

    def finish(self) -> None:
        """End everything; nothing may be left."""
        for request in list(self.requests):
            self.close(request, request.computed)
        self.clear()
        assert self.cache.num_free == self.num_pages - 1, "pages were lost"
        assert self.cache.num_locks == 0

    # -- What must hold.

    @property
    def num_private(self) -> int:
        return sum(len(request.private) for request in self.requests)

    def verify(self) -> None:
        """Compare the manager's books with a recount, with the model, and with the device."""
        cache, model = self.cache, self.model
        cache.check()
        assert contents(cache._tree) == model.pages
        protected = model.protected(request.lock for request in self.requests)
        assert cache.num_protected == len(protected)
        assert cache.num_cached == len(model.pages) - len(protected)
        assert cache.num_private == self.num_private
        assert cache.num_free == self.num_pages - 1 - len(self._owned())
        assert cache.num_locks == len(self.requests)
        for (namespace, tokens), page in model.pages.items():
            for offset in range(self.page_size):
                end = len(tokens) - self.page_size + offset + 1
                assert self.device[page, offset] == (namespace, tokens[:end]), "stale KV is cached"
        for request in self.requests:
            self._check_kv(request)

    def _owned(self) -> set[int]:
        """All pages with an owner, who is one alone."""
        sets = [set(self.model.pages.values()), *(request.private for request in self.requests)]
        owned = set().union(*sets)
        assert len(owned) == sum(map(len, sets)), "a page has two owners"
        return owned

    def _check_kv(self, request: Request) -> None:
        """The request reads its own KV wherever it has been computed or reused."""
        for position in range(request.computed):
            page = int(request.lease.pages[position // self.page_size])
            kv = self.device.get((page, position % self.page_size))
            assert kv == (request.namespace, request.tokens[: position + 1]), "foreign KV is read"

    def _check_dead(self, request: Request, state: str) -> None:
        assert len(request.lease.pages) == 0
        refused(state, self.cache.grow, request.lease, 0)
        refused(state, self.cache.publish, request.lease, ())

    def _note_insertion(
        self, request: Request, num_tokens: int, row: list[int] | None = None
    ) -> None:
        tokens = request.tokens[:num_tokens]
        if num_tokens // self.page_size > len(request.lock.tokens) // self.page_size:
            self.model.insert(request.lock, tokens, request.row if row is None else row)
        request.private -= set(self.model.pages.values())

    def _note_evictions(self, num_expected: int) -> None:
        """Find out what was evicted, and whether it was the right choice."""
        left = set(contents(self.cache._tree).values())
        pages = [page for page in self.model.pages.values() if page not in left]
        assert len(pages) == num_expected, f"{len(pages)} pages evicted, not {num_expected}"
        self.model.evict(pages, [request.lock for request in self.requests])

    def _snapshot(self) -> object:
        """All that a look-up or a refused growth must leave as it is."""
        tree = self.cache._tree
        cached = contents(tree)
        keys = {prefix: tree.policy.key(page) for prefix, page in cached.items()}
        free = self.cache._pool._stack[: self.cache.num_free]
        return cached, keys, np.sort(free).tolist(), self.cache.num_protected, tree.num_receipts
