"""Prompts that stay in the cache after the request that computed them. A page has four tokens."""

from __future__ import annotations

import pytest

from jaxsgl.interface import SamplingParams
from jaxsgl.scheduling import holds
from tests.fake_runner import expected_tokens, make_limits
from tests.scheduling.test_scheduler import Answer, Bench, prompts

LARGE = 32
"""Tokens in eight pages: of a pool of sixteen as much as may be held."""


def small_bench(**settings) -> Bench:
    return Bench(make_limits(num_pages=17, num_slots=4), **settings)


def hold(bench: Bench, name: str, prompt: list[int], hold_s: float = 60) -> None:
    bench.add(name, prompt, max_tokens=0, hold_s=hold_s)
    bench.run()
    bench.scheduler.expire(0)


def flood(bench: Bench, rounds: int = 6) -> None:
    """Requests that begin differently, one after the other: they want every page."""
    for i, prompt in enumerate(prompts(rounds, 24, seed=7)):
        bench.add(f"flood{i}", prompt, max_tokens=4, ignore_eos=True)
        bench.run()


@pytest.mark.parametrize("is_held", [True, False])
def test_what_is_held_is_there_whatever_comes_between(is_held):
    bench = small_bench()
    (prompt,) = prompts(1, 30)
    bench.add("kept", prompt, max_tokens=0, hold_s=60 if is_held else None)
    bench.run()
    flood(bench)
    bench.add("next", [*prompt, 5], max_tokens=2)
    answer = bench.run()["next"]
    assert answer.cached_tokens == (28 if is_held else 0)
    assert answer.token_ids == expected_tokens([*prompt, 5], 2)
    stats = bench.scheduler.stats()
    assert (stats.holds, stats.locks, stats.holds_given_up) == (is_held, is_held, 0)


def test_a_hold_ends_when_its_time_is_over():
    bench = small_bench()
    (prompt,) = prompts(1, 8)
    bench.add("kept", prompt, max_tokens=0, hold_s=10)
    bench.run()
    bench.scheduler.expire(100)  # its time begins with the first reading of the clock
    assert bench.scheduler.next_deadline_s == 110
    bench.scheduler.expire(109.9)
    assert bench.scheduler.holds == ["kept"]
    bench.scheduler.expire(110)
    assert bench.scheduler.holds == [] and bench.scheduler.next_deadline_s is None
    bench.assert_idle()


@pytest.mark.parametrize("end", ["let_go", "abort", "flush", "shut_down", "restart"])
def test_what_ends_a_hold_before_its_time(end):
    bench = small_bench()
    hold(bench, "kept", prompts(1, 8)[0])
    match end:
        case "let_go":
            bench.scheduler.let_go("kept")
            bench.scheduler.let_go("kept")
        case "abort":
            bench.scheduler.abort("kept", "not wanted any more")
        case "flush":
            assert bench.scheduler.flush_cache() == 2
        case "shut_down":
            bench.scheduler.shut_down("the end")
        case "restart":
            bench.scheduler.restart(failed=False)
    assert bench.scheduler.holds == []
    bench.scheduler.check()
    bench.assert_idle()
    assert bench.scheduler.stats().holds_given_up == 0


@pytest.mark.parametrize("end", ["let_go", "abort", "shut_down", "deadline"])
@pytest.mark.parametrize("num_steps", range(4))
def test_a_prompt_that_nobody_waits_for_is_not_held(end, num_steps):
    bench = Bench(make_limits(max_tokens=8))
    (prompt,) = prompts(1, 20)
    bench.scheduler.add(
        "kept", prompt, SamplingParams(max_tokens=0, seed=0), hold_s=60, deadline_s=10
    )
    bench.answers["kept"] = Answer()
    for _ in range(num_steps):
        bench.step()
    match end:
        case "let_go":
            bench.scheduler.let_go("kept")
        case "abort":
            bench.scheduler.abort("kept", "gone")
        case "shut_down":
            bench.scheduler.shut_down("the end")
        case "deadline":
            bench.scheduler.expire(10)
    bench.run()
    assert bench.scheduler.holds == []


def test_nothing_is_held_where_nothing_is_cached():
    for bench, length in ((Bench(radix=False), 20), (small_bench(), 3), (small_bench(), 36)):
        bench.add("kept", prompts(1, length)[0], max_tokens=0, hold_s=60)
        bench.run()
        assert bench.scheduler.stats().holds == bench.scheduler.stats().locks == 0


def test_a_hold_of_the_same_name_takes_the_place_of_the_first():
    bench = small_bench()
    first, second = prompts(2, 8)
    hold(bench, "kept", first, 10)
    bench.released.clear()
    hold(bench, "kept", second, 20)
    assert bench.scheduler.holds == ["kept"] and bench.scheduler.next_deadline_s == 20
    assert bench.scheduler.stats().locks == 1


def test_new_holds_end_the_oldest_when_they_keep_too_much():
    bench = small_bench()
    for name, prompt in zip("abc", prompts(3, 16), strict=True):
        hold(bench, name, prompt)
    assert bench.scheduler.holds == ["b", "c"]  # eight pages of sixteen
    (prompt,) = prompts(1, 4, seed=3)
    for name in "defg":  # the same page four times is one page
        hold(bench, name, prompt)
    assert bench.scheduler.holds == ["c", "d", "e", "f", "g"]
    assert bench.scheduler.stats().holds_given_up == 2


def test_there_are_only_so_many_holds(monkeypatch):
    monkeypatch.setattr(holds, "MAX_HOLDS", 3)
    bench = small_bench()
    for name in "abcde":
        hold(bench, name, prompts(1, 4)[0])
    assert bench.scheduler.holds == ["c", "d", "e"]


def test_holds_go_before_a_running_request_gives_way():
    bench = small_bench()
    old, new, prompt = prompts(3, 16)
    hold(bench, "old", old)
    hold(bench, "new", new)
    bench.add("long", prompt, max_tokens=26, ignore_eos=True)  # eleven pages: three too many
    answer = bench.run()["long"]
    assert answer.token_ids == expected_tokens(prompt, 26, ignore_eos=True)
    assert bench.scheduler.holds == ["new"]  # one was enough
    stats = bench.scheduler.stats()
    assert (stats.requests_retracted, stats.holds_given_up) == (0, 1)


def test_a_lone_request_gets_every_page():
    bench = small_bench()
    (prompt,) = prompts(1, 12)
    for name, length in (("a", 12), ("b", 12), ("c", 8)):  # the same pages
        hold(bench, name, prompt[:length])
    (large,) = prompts(1, 60, seed=3)
    bench.add("large", large, max_tokens=3, ignore_eos=True)
    assert bench.run()["large"].token_ids == expected_tokens(large, 3, ignore_eos=True)
    assert bench.scheduler.holds == []


def test_those_who_wait_do_not_end_holds_while_others_run():
    bench = small_bench()
    kept, first, second = prompts(3, 24)
    hold(bench, "kept", kept[:16])  # four pages
    bench.add("first", first, max_tokens=8, ignore_eos=True)  # eight
    bench.step()
    bench.add("second", second, max_tokens=8, ignore_eos=True)  # eight, of which four are left
    while bench.answers["first"].finish is None:
        bench.step()
        assert bench.scheduler.holds == ["kept"]
    bench.run()
    assert bench.scheduler.holds == ["kept"]


def test_a_hold_whose_pages_are_in_use_is_in_nobodys_way():
    bench = small_bench()
    (prompt,) = prompts(1, LARGE)
    hold(bench, "kept", prompt)
    bench.scheduler._planner._admission.ratio = 0.1  # so that both are let in
    for i in range(2):  # each continues what is held, and wants five pages more: ten for eight
        bench.add(str(i), [*prompt, i + 1], max_tokens=19, ignore_eos=True)
    answers = bench.run()
    for i in range(2):
        assert answers[str(i)].cached_tokens == LARGE
        assert answers[str(i)].token_ids == expected_tokens([*prompt, i + 1], 19, ignore_eos=True)
    assert bench.scheduler.stats().requests_retracted > 0
    assert bench.scheduler.holds == ["kept"]


def test_the_urgent_take_the_pages_of_holds_before_those_of_the_less_urgent():
    bench = small_bench(policy="priority")
    kept, low, high = prompts(3, 24)
    hold(bench, "kept", kept)  # six pages
    bench.add("low", low, max_tokens=4, ignore_eos=True)  # seven
    bench.step()
    bench.scheduler.add("high", high, SamplingParams(max_tokens=4, seed=0), priority=5)
    bench.answers["high"] = Answer()
    bench.run()
    stats = bench.scheduler.stats()
    assert (stats.requests_retracted, stats.holds_given_up) == (0, 1)
