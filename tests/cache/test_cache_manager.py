"""What a scheduler may rely on, one promise at a time. Most pages have four tokens."""

import numpy as np
import pytest

from jaxsgl.cache.errors import AccountingError, LeaseError
from jaxsgl.cache.manager import KVCacheManager

P = 4
PROMPT = list(range(100, 110))
"""Two whole pages and two tokens."""


def counts(cache: KVCacheManager) -> dict[str, int]:
    cache.check()
    return {
        "free": cache.num_free,
        "cached": cache.num_cached,
        "protected": cache.num_protected,
        "private": cache.num_private,
    }


def answered(cache: KVCacheManager, tokens: list[int], namespace: str = "") -> list[int]:
    """A request that was computed and closed; the pages it had."""
    lease = cache.open(namespace, tokens)
    assert cache.grow(lease, len(tokens)) is not None
    row = lease.pages.tolist()
    cache.close(lease, tokens)
    return row


def test_a_request_from_open_to_close() -> None:
    cache = KVCacheManager(9, P)
    lease = cache.open("", PROMPT)
    assert (lease.num_reused, lease.pages.tolist(), lease.namespace) == (0, [], "")
    new = cache.grow(lease, len(PROMPT))
    assert new is not None and new.dtype == np.int32 and lease.pages.tolist() == new.tolist()
    assert counts(cache) == {"free": 5, "cached": 0, "protected": 0, "private": 3}
    cache.publish(lease, PROMPT)
    assert counts(cache) == {"free": 5, "cached": 0, "protected": 2, "private": 1}
    cache.close(lease, PROMPT)
    assert counts(cache) == {"free": 6, "cached": 2, "protected": 0, "private": 0}
    assert cache.num_locks == 0


def test_the_next_request_reuses_whole_pages() -> None:
    cache = KVCacheManager(9, P)
    row = answered(cache, PROMPT)
    lease = cache.open("", PROMPT)
    assert lease.num_reused == 8
    assert lease.pages.tolist() == row[:2]
    assert counts(cache)["protected"] == 2


@pytest.mark.parametrize(
    ("length", "max_reuse", "reused"),
    [
        (0, None, 0),
        (1, None, 0),
        (4, None, 3),
        (5, None, 4),
        (8, None, 7),
        (9, None, 8),
        (10, 8, 8),
        (10, 7, 4),
        (10, 0, 0),
        (8, 8, 7),
        (8, 7, 4),
    ],
)
def test_the_last_token_is_computed_but_its_page_is_shared(
    length: int, max_reuse: int | None, reused: int
) -> None:
    cache = KVCacheManager(9, P)
    answered(cache, PROMPT)
    lease = cache.open("", PROMPT[:length], max_reuse=max_reuse)
    assert lease.num_reused == reused
    assert len(lease.pages) * P == lease.shared_len == -(-reused // P) * P
    if max_reuse is None:
        assert cache.match_len("", PROMPT[:length]) == reused


def test_lists_and_arrays_are_the_same_tokens() -> None:
    cache = KVCacheManager(9, P)
    answered(cache, PROMPT)
    assert cache.match_len("", np.array(PROMPT, dtype=np.int32)) == 8
    assert cache.match_len("", tuple(PROMPT)) == 8
    with pytest.raises(TypeError, match="int32"):
        cache.match_len("", np.array(PROMPT, dtype=np.int64))


def test_growing_adds_what_is_missing_and_nothing_else() -> None:
    cache = KVCacheManager(9, P)
    lease = cache.open("", PROMPT)
    assert [len(cache.grow(lease, n)) for n in (1, 4, 5, 12, 3)] == [1, 0, 1, 1, 0]
    assert len(lease.pages) == 3
    assert not lease.pages.flags.writeable


def test_growing_evicts_and_stops_at_what_is_protected() -> None:
    cache = KVCacheManager(6, P)
    answered(cache, PROMPT)
    holder = cache.open("", PROMPT[:5])
    lease = cache.open("", [1])
    before = counts(cache)
    assert cache.grow(lease, 5 * P) is None
    assert counts(cache) == before
    assert len(lease.pages) == 0
    assert len(cache.grow(lease, 4 * P)) == 4
    assert cache.match_len("", PROMPT) == 4
    assert holder.pages.tolist()
    assert counts(cache) == {"free": 0, "cached": 0, "protected": 1, "private": 4}


def test_rows_stay_as_they_are_when_two_compute_the_same() -> None:
    cache = KVCacheManager(9, P)
    first, second = cache.open("", PROMPT), cache.open("", PROMPT)
    cache.grow(first, 10)
    cache.grow(second, 10)
    row = second.pages.tolist()
    cache.publish(first, PROMPT)
    cache.publish(second, PROMPT)
    assert second.pages.tolist() == row
    assert counts(cache) == {"free": 2, "cached": 0, "protected": 2, "private": 4}
    cache.close(first, PROMPT)
    assert counts(cache)["protected"] == 2
    cache.close(second, PROMPT)
    assert counts(cache) == {"free": 6, "cached": 2, "protected": 0, "private": 0}


def test_a_duplicate_prefix_goes_on_with_pages_of_its_own() -> None:
    cache = KVCacheManager(12, P)
    longer = [*PROMPT, 1, 2]
    first, second = cache.open("", PROMPT), cache.open("", longer)
    cache.grow(first, 10)
    cache.grow(second, 12)
    cache.close(first, PROMPT)
    row = second.pages.tolist()
    cache.publish(second, longer)
    third = cache.open("", [*longer, 3])
    assert third.num_reused == 12
    assert third.pages[2] == row[2] and third.pages[0] != row[0]
    cache.check()


def test_publishing_again_or_less_changes_nothing() -> None:
    cache = KVCacheManager(9, P)
    lease = cache.open("", PROMPT)
    cache.grow(lease, 10)
    cache.publish(lease, PROMPT)
    before = counts(cache)
    cache.publish(lease, PROMPT)
    cache.publish(lease, PROMPT[:4])
    cache.publish(lease, [])
    assert counts(cache) == before


def test_publishing_what_has_no_pages_is_refused() -> None:
    cache = KVCacheManager(9, P)
    lease = cache.open("", PROMPT)
    cache.grow(lease, 4)
    with pytest.raises(ValueError, match="8 tokens in 1 pages"):
        cache.publish(lease, PROMPT[:8])
    with pytest.raises(ValueError, match="8 tokens in 1 pages"):
        cache.close(lease, PROMPT[:8])
    cache.close(lease, PROMPT[:4])
    assert counts(cache)["cached"] == 1


def test_an_aborted_prefill_keeps_the_part_that_is_valid() -> None:
    cache = KVCacheManager(9, P)
    lease = cache.open("", PROMPT)
    cache.grow(lease, 10)
    cache.close(lease, PROMPT[:7])
    assert counts(cache) == {"free": 7, "cached": 1, "protected": 0, "private": 0}


def test_closing_with_nothing_to_keep_leaves_what_was_published() -> None:
    cache = KVCacheManager(9, P)
    lease = cache.open("", PROMPT)
    cache.grow(lease, 10)
    cache.publish(lease, PROMPT[:4])
    cache.close(lease, None)
    assert counts(cache) == {"free": 7, "cached": 1, "protected": 0, "private": 0}


def test_a_closed_lease_is_dead() -> None:
    cache = KVCacheManager(9, P)
    lease = cache.open("", PROMPT)
    cache.close(lease, None)
    for use in (
        lambda: cache.close(lease, None),
        lambda: cache.grow(lease, 0),
        lambda: cache.publish(lease, []),
    ):
        with pytest.raises(LeaseError, match="closed"):
            use()


def test_namespaces_see_nothing_of_each_other() -> None:
    cache = KVCacheManager(9, P)
    answered(cache, PROMPT, "x")
    assert cache.match_len("y", PROMPT) == 0
    assert cache.open("y", PROMPT).num_reused == 0


def test_clear_drops_what_nobody_needs() -> None:
    cache = KVCacheManager(12, P)
    answered(cache, PROMPT)
    answered(cache, [1] * 8)
    lease = cache.open("", PROMPT)
    assert cache.clear() == 2
    assert counts(cache) == {"free": 9, "cached": 0, "protected": 2, "private": 0}
    cache.close(lease, None)
    assert cache.clear() == 2
    assert cache.num_free == 11


def test_reset_loses_every_lease() -> None:
    cache = KVCacheManager(9, P)
    lease = cache.open("", PROMPT)
    cache.grow(lease, 10)
    cache.publish(lease, PROMPT)
    cache.reset()
    assert counts(cache) == {"free": 8, "cached": 0, "protected": 0, "private": 0}
    assert cache.num_locks == 0
    with pytest.raises(LeaseError, match="lost"):
        cache.grow(lease, 10)
    with pytest.raises(LeaseError, match="lost"):
        cache.publish(lease, PROMPT)
    assert cache.match_len("", PROMPT) == 0
    cache.close(lease, PROMPT)
    assert cache.num_cached == 0
    with pytest.raises(LeaseError, match="closed"):
        cache.close(lease, PROMPT)


def test_without_a_radix_tree_nothing_is_shared_or_kept() -> None:
    cache = KVCacheManager(9, P, radix=False)
    lease = cache.open("", PROMPT)
    cache.grow(lease, 10)
    cache.publish(lease, PROMPT)
    assert cache.match_len("", PROMPT) == 0
    assert cache.open("", PROMPT).num_reused == 0
    assert counts(cache) == {"free": 5, "cached": 0, "protected": 0, "private": 3}
    cache.close(lease, PROMPT)
    assert counts(cache) == {"free": 8, "cached": 0, "protected": 0, "private": 0}


def test_priority_eviction_keeps_what_urgent_requests_used() -> None:
    cache = KVCacheManager(5, P, eviction="priority")
    urgent = cache.open("", PROMPT[:8], priority=1)
    cache.grow(urgent, 8)
    cache.close(urgent, PROMPT[:8])
    answered(cache, [1] * 8)
    cache.grow(cache.open("", [2]), 8)
    assert cache.match_len("", PROMPT) == 8
    assert cache.match_len("", [1] * 8) == 0


@pytest.mark.parametrize(("default_quota", "kept_len"), [(2, 8), (None, 0)])
def test_a_quota_keeps_a_flood_in_its_own_namespace(
    default_quota: int | None, kept_len: int
) -> None:
    cache = KVCacheManager(9, P, default_quota=default_quota)
    answered(cache, PROMPT, "quiet")
    for i in range(20):
        answered(cache, [i] * 8, "flood")
    assert cache.match_len("quiet", PROMPT) == kept_len
    cache.check()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"eviction": "fifo"}, "lfu, lru, priority"),
        ({"page_size": 0}, "page_size=0"),
        ({"num_pages": 1}, "num_pages=1"),
        ({"quotas": {"x": -1}}, "quota"),
        ({"default_quota": -1}, "quota"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KVCacheManager(**{"num_pages": 9, "page_size": P, **wrong})


def test_check_finds_pages_that_nobody_answers_for() -> None:
    cache = KVCacheManager(9, P)
    lease = cache.open("", PROMPT)
    cache.grow(lease, 10)
    del cache._leases[lease.lease_id]
    with pytest.raises(AccountingError, match="3 private pages, leases hold 0"):
        cache.check()


def test_check_finds_a_row_that_is_not_on_its_path() -> None:
    cache = KVCacheManager(9, P)
    lease = cache.open("", PROMPT)
    cache.grow(lease, 10)
    cache.publish(lease, PROMPT)
    lease.pages = lease.pages[::-1]
    with pytest.raises(AccountingError, match="lease 1"):
        cache.check()


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_any_page_size(page_size: int) -> None:
    cache = KVCacheManager(200, page_size)
    answered(cache, list(range(100)))
    lease = cache.open("", list(range(100)))
    assert lease.num_reused == 99 // page_size * page_size
    cache.check()
