"""Mistakes that caches are known to make, each with the shortest story that betrays it.

A defect replaces one method. Its replay must pass without the defect and fail with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from jaxsgl.cache import radix_tree
from jaxsgl.cache.eviction import Lru
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.cache.node import split
from jaxsgl.cache.page_pool import CACHE
from jaxsgl.cache.radix_tree import RadixTree
from tests.cache.checked_cache import CheckedCache, Request


@dataclass(frozen=True)
class Defect:
    name: str
    target: Any
    attribute: str
    replacement: Callable[..., Any]
    replay: Callable[[], None]

    def seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self.target, self.attribute, self.replacement)


# -- The defects.


def pin_all_but_own_node(self, receipt):
    receipt.node.pins.setdefault(receipt.offset, set()).add(receipt)
    self._protect(receipt.node.parent)


def split_losing_locks(node, offset, page_bytes):
    upper = split(node, offset, page_bytes)
    upper.num_protected = upper.num_locked_children = 0
    return upper


def split_leaving_receipts_behind(node, offset, page_bytes):
    places = [(r, r.node, r.offset) for pinned in node.pins.values() for r in pinned]
    upper = split(node, offset, page_bytes)
    for receipt, old_node, old_offset in places:
        receipt.node, receipt.offset = old_node, old_offset
    return upper


def trim_head(self, node, limit):
    """Keeps the last pages under the first tokens."""
    pages = node.pages.copy()
    tail = _trim(self, node, limit)
    node.pages = pages[len(tail) :]
    return pages[: len(tail)]


def trim_beyond_pins(self, node, limit):
    node.num_protected = 0
    return _trim(self, node, limit)


def match_merging_namespaces(self, namespace, tokens):
    return max(_match(self, name, tokens) for name in [namespace, *self.namespaces])


def lock_merging_namespaces(self, namespace, tokens, priority=0):
    return _lock(self, "", tokens, priority)


def insert_taking_duplicates(self, receipt, tokens, pages):
    _insert(self, receipt, tokens, pages)
    return 0


def free_twice(self, lease, token_ids):
    private = lease.pages[self._pool.owners(lease.pages) == lease.lease_id]
    self._pool.free(private[:1], lease.lease_id)
    _close(self, lease, token_ids)
    self._pool.free(private[:1], lease.lease_id)


def close_freeing_whole_pages_only(self, lease, token_ids):
    if token_ids is not None and len(token_ids) % self._page_size:
        lease.pages = lease.pages[: len(token_ids) // self._page_size]
    _close(self, lease, token_ids)


def reset_keeping_leases(self):
    leases, self._leases = self._leases, {}
    _reset(self)
    self._leases = leases


def clear_dropping_locked_pages(self):
    pages = self._pool.owned_by(CACHE).astype(np.int32)
    self._pool.free(pages, CACHE)
    self._tree = self._new_tree()
    return len(pages)


def reuse_the_last_token_too(self, num_pages, num_tokens):
    return num_pages * self._page_size


def youngest_first(self, page):
    return tuple(-rank for rank in _key(self, page))


def policy_before_quota(self):
    return self.queue, self.num_evictable


def match_that_counts_as_use(self, namespace, tokens):
    receipt, pages = _lock(self, namespace, tokens)
    self.unlock(receipt)
    return len(pages)


_trim = RadixTree._trim
_match = RadixTree.match
_lock = RadixTree.lock
_insert = RadixTree.insert
_close = KVCacheManager.close
_reset = KVCacheManager.reset
_key = Lru.key


# -- Their stories, on pages of two tokens: A, B, ... are whole pages.

A, B, C, D, E = (1, 1), (1, 2), (2, 1), (3, 3), (4, 4)


def ask(checked: CheckedCache, tokens: tuple[int, ...], namespace: str = "") -> Request:
    """A request whose prompt is computed and published."""
    request = checked.open(namespace, tokens)
    assert checked.grow(request, len(tokens))
    checked.compute(request, len(tokens))
    checked.publish(request, len(tokens))
    return request


def answer(checked: CheckedCache, tokens: tuple[int, ...], namespace: str = "") -> None:
    """A request that comes and goes."""
    request = ask(checked, tokens, namespace)
    checked.close(request, len(tokens))


def fill(checked: CheckedCache, num_pages: int) -> Request:
    """Take pages for a request that shares nothing."""
    request = checked.open("", (0,))
    assert checked.grow(request, num_pages * checked.page_size)
    return request


def evict_while_locked() -> None:
    checked = CheckedCache(7, 2)
    ask(checked, A + B)
    answer(checked, C + D)
    fill(checked, 4)
    checked.finish()


def part_from_a_locked_edge() -> None:
    checked = CheckedCache(9, 2)
    ask(checked, A + B + C)
    ask(checked, A + B + D)
    checked.finish()


def part_above_and_below_locks() -> None:
    checked = CheckedCache(13, 2)
    late = checked.open("", A + B + E)
    answer(checked, A + B + C + D)
    checked.open("", (*A, 0))
    checked.open("", (*A, *B, *C, 0))
    assert checked.grow(late, 6)
    checked.compute(late, 6)
    checked.close(late, 6)
    fill(checked, checked.cache.num_free + checked.cache.num_cached)
    checked.finish()


def evict_part_of_an_edge() -> None:
    checked = CheckedCache(5, 2)
    answer(checked, A + B + C)
    fill(checked, 2)
    assert checked.match("", (*A, *B, *C, 0)) == 4
    checked.open("", (*A, *B, 0))
    checked.finish()


def evict_below_a_lock_inside_an_edge() -> None:
    checked = CheckedCache(5, 2)
    answer(checked, A + B + C)
    checked.open("", (*A, 0))
    fill(checked, 3)
    assert checked.match("", A + B + C) == 2
    checked.finish()


def ask_in_another_namespace() -> None:
    checked = CheckedCache(9, 2)
    answer(checked, A + B)
    assert checked.match("other", (*A, *B, 0)) == 0
    answer(checked, (*A, *B, 0), "other")
    checked.finish()


def compute_the_same_twice() -> None:
    checked = CheckedCache(9, 2)
    first, second = checked.open("", A + B), checked.open("", A + B)
    for request in (first, second):
        assert checked.grow(request, 4)
        checked.compute(request, 4)
    checked.close(first, 4)
    checked.close(second, 4)
    checked.finish()


def end_in_a_partial_page() -> None:
    checked = CheckedCache(5, 2)
    answer(checked, (*A, 1))
    assert checked.cache.num_cached == 1
    checked.finish()


def reset_under_a_lease() -> None:
    checked = CheckedCache(9, 2)
    ask(checked, A + B)
    checked.reset()
    answer(checked, C + D)
    checked.finish()


def clear_under_a_lease() -> None:
    checked = CheckedCache(9, 2)
    ask(checked, A + B)
    answer(checked, C)
    checked.clear()
    checked.finish()


def ask_for_exactly_what_is_cached() -> None:
    checked = CheckedCache(9, 2)
    answer(checked, A + B)
    lease = checked.open("", A + B).lease
    assert (lease.num_reused, lease.shared_len) == (3, 4)
    checked.finish()


def evict_the_older() -> None:
    checked = CheckedCache(5, 2)
    answer(checked, A)
    answer(checked, B)
    fill(checked, 3)
    checked.finish()


def evict_from_a_namespace_above_its_quota() -> None:
    checked = CheckedCache(6, 2, quotas={"greedy": 1})
    answer(checked, A)
    answer(checked, B + C, "greedy")
    fill(checked, 3)
    assert checked.match("", (*A, 0)) == 2
    checked.finish()


def look_at_the_older_before_evicting() -> None:
    checked = CheckedCache(5, 2)
    answer(checked, A)
    answer(checked, B)
    checked.match("", (*A, 0))
    fill(checked, 3)
    checked.finish()


DEFECTS = [
    Defect("lock skips own node", RadixTree, "_pin", pin_all_but_own_node, evict_while_locked),
    Defect(
        "split loses lock count", radix_tree, "split", split_losing_locks, part_from_a_locked_edge
    ),
    Defect(
        "split leaves receipts behind",
        radix_tree,
        "split",
        split_leaving_receipts_behind,
        part_above_and_below_locks,
    ),
    Defect("eviction of the edge head", RadixTree, "_trim", trim_head, evict_part_of_an_edge),
    Defect(
        "eviction ignores locks inside an edge",
        RadixTree,
        "_trim",
        trim_beyond_pins,
        evict_below_a_lock_inside_an_edge,
    ),
    Defect(
        "look-up merges namespaces",
        RadixTree,
        "match",
        match_merging_namespaces,
        ask_in_another_namespace,
    ),
    Defect(
        "lock merges namespaces",
        RadixTree,
        "lock",
        lock_merging_namespaces,
        ask_in_another_namespace,
    ),
    Defect(
        "duplicates go to the tree",
        RadixTree,
        "insert",
        insert_taking_duplicates,
        compute_the_same_twice,
    ),
    Defect("double free", KVCacheManager, "close", free_twice, end_in_a_partial_page),
    Defect(
        "lost partial page",
        KVCacheManager,
        "close",
        close_freeing_whole_pages_only,
        end_in_a_partial_page,
    ),
    Defect(
        "stale lease after reset",
        KVCacheManager,
        "reset",
        reset_keeping_leases,
        reset_under_a_lease,
    ),
    Defect(
        "flush drops locked pages",
        KVCacheManager,
        "clear",
        clear_dropping_locked_pages,
        clear_under_a_lease,
    ),
    Defect(
        "off-by-one match cap",
        KVCacheManager,
        "_num_reused",
        reuse_the_last_token_too,
        ask_for_exactly_what_is_cached,
    ),
    Defect("youngest first", Lru, "key", youngest_first, evict_the_older),
    Defect(
        "quota ignored",
        RadixTree,
        "_next_queue",
        policy_before_quota,
        evict_from_a_namespace_above_its_quota,
    ),
    Defect(
        "look-up counts as use",
        RadixTree,
        "match",
        match_that_counts_as_use,
        look_at_the_older_before_evicting,
    ),
]
