"""Rows that begin with the same pages are brought together."""

import numpy as np
import pytest

from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.interface import SamplingParams
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from jaxsgl.scheduling.shared_prefixes import PrefixSharing, page_order
from tests.fake_runner import FakeRunner, expected_tokens, make_limits


def shared(pages, kv_len, pack_rows=2, page_size=4):
    """(order of rows, starts of packs, lengths shared)"""
    orders = [page_order(np.array(row, np.int32)) for row in pages]
    found = PrefixSharing(page_size, pack_rows).find(orders, kv_len)
    return found and (found[0], *(array.tolist() for array in found[1]))


def test_rows_are_packed_by_what_they_share():
    pages = [[7, 1, 2], [9, 5], [300, 4, 4], [7, 1, 3], [300, 4, 6], [9, 6], [301, 1]]
    # 9 before 300: as numbers, not as bytes in the machine's order.
    order = [0, 3, 1, 5, 2, 4, 6]
    found = shared(pages, [12, 8, 12, 11, 12, 8, 5])
    assert found == (order, [0, 2, 4, 6, 7], [8, 4, 8, 0])


def test_packs_end_where_prefixes_do():
    pages = [[1, 1, 1, row] for row in range(10, 13)] + [[2, 2, 2, row] for row in range(5)]
    found = shared(pages, [16] * 8, pack_rows=4)
    assert found == (list(range(8)), [0, 3, 7, 8], [12, 12, 0])


def test_there_are_never_more_packs_than_there_is_room_for():
    pages = [[row // 3, row // 3, row] for row in range(64)]
    _, starts, shared_len = shared(pages, [9] * 64, pack_rows=4)
    assert len(shared_len) <= 2 * 64 // 4
    assert starts[-1] == 64 and max(np.diff(starts)) <= 4


def test_the_same_rows_are_packed_once_and_measured_anew():
    sharing = PrefixSharing(4, 2)
    orders = [page_order(np.array([1, 2, row], np.int32)) for row in range(4)]
    assert sharing.find(orders, [5, 6, 12, 12])[1].shared_len.tolist() == [5, 8]
    assert sharing.find(list(orders), [12] * 4)[1].shared_len.tolist() == [8, 8]
    assert sharing.find([*orders[:3], page_order(np.array([9], np.int32))], [12, 12, 12, 4]) is None


def test_what_is_shared_never_exceeds_the_shortest_row():
    assert shared([[1, 2, 3]] * 4, [9, 12, 12, 10]) == ([0, 1, 2, 3], [0, 2, 4], [9, 10])


@pytest.mark.parametrize(
    "pages",
    [
        [[1, 2], [3, 4], [5, 6], [7, 8]],
        [[1, *range(n, n + 6)] for n in (10, 20, 30, 40)],
        [[1, 2], [1, 2], [1, 2]],
    ],
    ids=["nothing", "one page of seven", "few rows"],
)
def test_too_little_in_common_is_not_worth_it(pages):
    assert shared(pages, [4 * len(row) for row in pages]) is None


def run(num_requests, pack_rows, prefix_len=24, num_tokens=6):
    """Modes of the steps, and the answers, of requests that begin alike two by two."""
    limits = make_limits(num_pages=257, num_slots=8, max_tokens=64, pack_rows=pack_rows)
    cache = KVCacheManager(limits.num_pages, limits.page_size)
    scheduler = Scheduler(limits, cache, Vocabulary([], (0,)), SchedulingSettings(max_len=100))
    runner = FakeRunner(limits)
    prompts = [[3 + n % 2] * prefix_len + [7, 8 + n] for n in range(num_requests)]
    params = SamplingParams(max_tokens=num_tokens, seed=0, ignore_eos=True)
    answers = {f"r{n}": [] for n in range(num_requests)}
    for name, prompt in zip(answers, prompts, strict=True):
        scheduler.add(name, prompt, params)
    while not scheduler.idle:
        plan = scheduler.plan_step()
        assert plan is not None
        scheduler.apply(runner.dispatch(plan).wait())
        for row in scheduler.take_outputs().rows:
            answers[row.request_id] += row.token_ids
    scheduler.check()
    expected = [expected_tokens(prompt, num_tokens, ignore_eos=True) for prompt in prompts]
    return [plan.mode for plan in runner.plans], list(answers.values()), expected


@pytest.mark.parametrize("pack_rows", [2, 4])
def test_steps_of_a_scheduler_share_prefixes_and_draw_the_same(pack_rows):
    """The runner checks that what is said to be shared is."""
    modes, answers, expected = run(8, pack_rows)
    assert modes.count("shared") >= 3
    assert answers == expected


def test_few_rows_and_devices_that_cannot_share_decode_as_ever():
    assert "shared" not in run(8, 0)[0]
    assert "shared" not in run(3, 2)[0]
