"""The order of admission, and that nobody starves under any policy."""

from __future__ import annotations

import pytest

from jaxsgl.command_line import parse_command_line
from jaxsgl.config import EngineConfig
from jaxsgl.interface import SamplingParams
from jaxsgl.scheduling.policies import POLICY_NAMES, WINDOW, make_policy
from jaxsgl.scheduling.prefix_sharing import MIN_SHARED_LEN, is_worth_waiting
from jaxsgl.scheduling.request import Request
from jaxsgl.scheduling.waiting_queue import MIN_OVERTAKEN, WaitingQueue
from jaxsgl.serve import main


def request(arrival: int, tokens: list[int] | None = None, **fields) -> Request:
    max_tokens = fields.pop("max_tokens", 8)
    return Request(
        str(arrival),
        tokens or [1, 2, 3],
        SamplingParams(max_tokens=max_tokens, seed=0),
        arrival=arrival,
        max_len=10_000,
        eos_token_ids=(),
        **fields,
    )


def ids(requests: list[Request]) -> list[str]:
    return [r.request_id for r in requests]


def order(name: str, waiting: list[Request], match: dict[str, int] | None = None) -> list[str]:
    return ids(make_policy(name)(waiting, lambda r: (match or {}).get(r.request_id, 0)))


def test_fcfs_keeps_the_order_of_arrival():
    assert order("fcfs", [request(0), request(1)], {"1": 99}) == ["0", "1"]


def test_lpm_prefers_what_is_cached_and_keeps_arrival_among_equals():
    waiting = [request(i) for i in range(4)]
    assert order("lpm", waiting, {"1": 5, "3": 9}) == ["3", "1", "0", "2"]


def test_lpm_looks_at_the_oldest_only():
    waiting = [request(i) for i in range(WINDOW + 1)]
    assert order("lpm", waiting, {str(WINDOW): 99})[-1] == str(WINDOW)


def test_dfs_weight_stays_in_a_branch_and_takes_the_heavier_first():
    light, heavy = [1, 2], [1, 3]
    waiting = [
        request(0, [*light, 7]),
        request(1, [*heavy, 7]),
        request(2, [*light, 8]),
        request(3, [*heavy, 8]),
        request(4, [*heavy, 9]),
    ]
    assert order("dfs-weight", waiting, dict.fromkeys("01234", 2)) == ["1", "3", "4", "0", "2"]


def test_dfs_weight_of_long_equal_prefixes_needs_no_deep_stack():
    waiting = [request(i, [5] * 5000) for i in range(3)]
    assert order("dfs-weight", waiting, dict.fromkeys("012", 4999)) == ["0", "1", "2"]


def test_lof_takes_the_longest_answer_first():
    waiting = [request(0, max_tokens=3), request(1, max_tokens=9)]
    assert order("lof", waiting) == ["1", "0"]


def test_priority_takes_the_most_urgent_first():
    assert order("priority", [request(0, priority=1), request(1, priority=5)]) == ["1", "0"]


def test_random_loses_nobody_and_follows_its_seed():
    waiting = [request(i) for i in range(20)]
    first = ids(make_policy("random", 3)(waiting, lambda r: 0))
    assert first == ids(make_policy("random", 3)(waiting, lambda r: 0))
    assert first != ids(waiting) and sorted(first) == sorted(ids(waiting))


def test_an_unknown_policy_lists_the_known():
    with pytest.raises(ValueError, match=r"fcfs, lpm, dfs-weight, lof, random, priority"):
        make_policy("best")


def test_the_command_line_lists_the_known_policies_in_one_line(capsys):
    assert main(["--schedule-policy", "best"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "jaxsgl: argument --schedule-policy: invalid choice: 'best' (choose from"
    )
    assert said.count("\n") == 1
    assert all(name in said for name in POLICY_NAMES)


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_the_command_line_knows_every_policy(name):
    (config,) = parse_command_line(["--schedule-policy", name], "", "", EngineConfig)
    assert config.schedule_policy == name


def test_a_request_is_overtaken_so_often_and_then_goes_first():
    queue = WaitingQueue(make_policy("lpm"), lambda r: r.arrival)  # always prefers the newest
    queue.add(request(0))
    for arrival in range(1, MIN_OVERTAKEN + 1):
        queue.add(request(arrival))
        newest = queue.in_order()[0]
        assert newest.arrival == arrival
        queue.admit(newest)
    queue.add(request(99))
    assert queue.in_order()[0].arrival == 0


def test_the_more_urgent_may_overtake_for_ever():
    queue = WaitingQueue(make_policy("priority"), lambda r: 0)
    queue.add(request(0))
    for arrival in range(1, 100):
        queue.add(request(arrival, priority=1))
        assert queue.in_order()[0].arrival == arrival
        queue.admit(queue.in_order()[0])


def test_a_request_that_comes_back_keeps_its_place():
    queue = WaitingQueue(make_policy("fcfs"), lambda r: 0)
    queue.add(request(5))
    queue.add(request(2))
    assert [r.arrival for r in queue] == [2, 5]
    with pytest.raises(ValueError, match="does not wait"):
        queue.remove(request(3))


def test_waiting_for_a_prefix_must_be_worth_it():
    shared = list(range(100, 100 + 2 * MIN_SHARED_LEN))
    first = request(0, [*shared, 1])
    second = request(1, [*shared, 2])
    assert is_worth_waiting(second, 0, [first])
    assert not is_worth_waiting(second, len(shared) - MIN_SHARED_LEN + 1, [first])
    assert not is_worth_waiting(request(2, shared[:8]), 0, [first])
    assert not is_worth_waiting(request(3, [9, *shared]), 0, [first])
    assert not is_worth_waiting(request(4, [*shared, 2], namespace="other"), 0, [first])
