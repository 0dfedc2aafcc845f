"""What the policies keep, and what the queue promises."""

import numpy as np
import pytest

from jaxsgl.cache.eviction import POLICIES, EvictionQueue, Lru, make_policy


def pages(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def order(policy: Lru, *ids: int) -> list[int]:
    """Pages from the first to go to the last."""
    return sorted(ids, key=policy.key)


def test_lru_goes_by_last_use() -> None:
    policy = make_policy("lru", 4)
    for page in (1, 2, 3):
        policy.add(pages(page), priority=0)
    policy.use(pages(1), priority=0)
    policy.refresh(pages(2))
    assert order(policy, 1, 2, 3) == [3, 1, 2]


def test_lfu_goes_by_number_of_uses_then_by_last_use() -> None:
    policy = make_policy("lfu", 4)
    for page in (1, 2, 3):
        policy.add(pages(page), priority=0)
    policy.use(pages(1), priority=0)
    policy.refresh(pages(2))
    assert order(policy, 1, 2, 3) == [3, 2, 1]


def test_priority_goes_by_the_most_urgent_user() -> None:
    policy = make_policy("priority", 4)
    policy.add(pages(1), priority=5)
    policy.add(pages(2), priority=-1)
    policy.add(pages(3), priority=0)
    policy.use(pages(1), priority=0)
    policy.use(pages(2), priority=1)
    assert order(policy, 1, 2, 3) == [3, 2, 1]


@pytest.mark.parametrize("name", POLICIES)
def test_a_page_that_comes_back_starts_afresh(name: str) -> None:
    policy = make_policy(name, 3)
    policy.add(pages(1), priority=9)
    policy.use(pages(1), priority=9)
    policy.add(pages(2), priority=1)
    policy.add(pages(1), priority=0)
    policy.use(pages(2), priority=1)
    assert order(policy, 1, 2) == [1, 2]


@pytest.mark.parametrize("name", POLICIES)
def test_num_alike_counts_equal_pages_at_the_end(name: str) -> None:
    policy = make_policy(name, 6)
    policy.add(pages(1, 2, 3, 4, 5), priority=0)
    assert policy.num_alike(pages(1, 2, 3, 4, 5)) == 5
    policy.use(pages(1, 2), priority=0)
    assert policy.num_alike(pages(1, 2, 3, 4, 5)) == 3
    assert policy.num_alike(pages(2)) == 1


def test_unknown_policy_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'fifo'.*lfu, lru, priority"):
        make_policy("fifo", 4)


def test_queue_pops_in_order_and_settles_ties_by_arrival() -> None:
    queue = EvictionQueue[str]()
    for name, key in [("late", (3,)), ("tied b", (1,)), ("tied a", (1,)), ("middle", (2,))]:
        queue.offer(name, key)
    popped = [queue.pop() for _ in range(5)]
    assert popped == [("tied b", (1,)), ("tied a", (1,)), ("middle", (2,)), ("late", (3,)), None]


def test_queue_keeps_the_smallest_key_of_a_candidate() -> None:
    queue = EvictionQueue[str]()
    queue.offer("a", (5,))
    queue.offer("b", (4,))
    queue.offer("a", (3,))
    queue.offer("a", (9,))
    assert queue.queued_key("a") == (3,)
    assert [queue.pop(), queue.pop(), queue.pop()] == [("a", (3,)), ("b", (4,)), None]


def test_queue_forgets() -> None:
    queue = EvictionQueue[str]()
    queue.offer("a", (1,))
    queue.forget("a")
    queue.forget("never seen")
    assert queue.queued_key("a") is None
    assert queue.pop() is None


def test_outdated_entries_do_not_pile_up() -> None:
    queue = EvictionQueue[int]()
    for round_ in range(100):
        for candidate in range(10):
            queue.offer(candidate, (1000 - round_,))
    assert len(queue._heap) <= 2 * 10 + 64
    for candidate in range(10):
        queue.forget(candidate)
        queue.offer(candidate + 10, (1,))
    assert sorted(queue.pop()[0] for _ in range(10)) == list(range(10, 20))
