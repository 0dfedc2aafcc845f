"""Rows that draw several tokens in one step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jaxsgl.interface import Finish
from jaxsgl.scheduling.chains import Chains
from jaxsgl.scheduling.shared_prefixes import PrefixSharing
from tests.fake_runner import expected_tokens, make_limits
from tests.scheduling.test_scheduler import Bench

LEN = 4


def bench(**settings) -> Bench:
    return Bench(make_limits(chain_len=LEN, **settings))


def modes(bench: Bench) -> list[str]:
    return [plan.mode for plan in bench.runner.plans]


@pytest.mark.parametrize("depth", [0, 1])
def test_rows_that_decode_draw_several_tokens_a_step(depth: int) -> None:
    chained = Bench(make_limits(chain_len=LEN), depth=depth)
    for n in range(3):
        chained.add(f"{n}", [1, 2, 3 + n], max_tokens=14 + n, ignore_eos=True)
    answers = chained.run()
    for n in range(3):
        wanted = expected_tokens([1, 2, 3 + n], 14 + n, ignore_eos=True)
        assert answers[f"{n}"].token_ids == wanted
        assert answers[f"{n}"].finish == Finish("length")
    # A step for the prompts (the second waits for the first's beginning), then rounds of four.
    assert set(modes(chained)[3:]) == {"chain"}
    assert len(chained.runner.plans) <= 3 + 4


def test_rows_draw_no_more_than_they_want() -> None:
    chained = bench()
    chained.add("long", [1], max_tokens=10, ignore_eos=True)
    chained.add("short", [2], max_tokens=3, ignore_eos=True)
    answers = chained.run()
    drawn = [plan.num_tokens for plan in chained.runner.plans if plan.mode == "chain"]
    assert drawn == [LEN + 2, LEN, 1] or drawn == [LEN + 2, LEN]
    assert [len(answers[name].token_ids) for name in ("long", "short")] == [10, 3]


def test_what_is_drawn_behind_the_end_counts_for_nothing() -> None:
    prompt = next([a, b] for a in range(1, 60) for b in range(1, 60) if ends_at([a, b]) == 3)
    chained = bench()
    chained.add("ends", prompt, max_tokens=20)
    chained.add("goes on", [5, 6, 7], max_tokens=20, ignore_eos=True)
    answers = chained.run()
    assert "chain" in modes(chained)
    assert answers["ends"].token_ids == expected_tokens(prompt, 20)
    assert answers["ends"].finish is not None and answers["ends"].finish.kind == "stop"
    assert answers["goes on"].token_ids == expected_tokens([5, 6, 7], 20, ignore_eos=True)


def ends_at(prompt: list[int]) -> int | None:
    """How many tokens an answer has that ends by itself."""
    tokens = expected_tokens(prompt, 20)
    return len(tokens) if len(tokens) < 20 else None


@pytest.mark.parametrize(
    "sampling",
    [
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.5},
        {"logit_bias": {3: 1.0}},
        {"min_tokens": 2},
        {"logprobs": 0},
    ],
    ids=lambda sampling: next(iter(sampling)),
)
def test_a_row_that_needs_more_than_its_draw_record_stops_chains(sampling) -> None:
    chained = bench()
    chained.add("plain", [1], max_tokens=8, ignore_eos=True)
    chained.add("other", [2], max_tokens=8, ignore_eos=True, **sampling)
    chained.run()
    assert "chain" not in modes(chained)


def test_nobody_waits_for_a_chain_who_could_be_in_the_step() -> None:
    chained = bench()
    chained.add("first", [1], max_tokens=30, ignore_eos=True)
    for _ in range(4):
        chained.step()
    assert modes(chained)[-1] == "chain"
    chained.add("second", [2, 3, 4], max_tokens=9, ignore_eos=True)
    chained.step()
    assert modes(chained)[-1] == "mixed"
    answers = chained.run()
    assert answers["second"].token_ids == expected_tokens([2, 3, 4], 9, ignore_eos=True)


def test_who_waits_for_a_slot_does_not_stop_chains() -> None:
    chained = bench(num_slots=1)
    for n in range(2):
        chained.add(f"{n}", [1 + n], max_tokens=9, ignore_eos=True)
    chained.run()
    assert modes(chained).count("chain") == 4


def test_nobody_gives_way_to_a_chain() -> None:
    """With too few pages for more rounds rows go on one by one, and nobody is retracted."""
    chained = bench(num_pages=9, page_size=1, num_slots=2)
    for n in range(2):
        chained.add(f"{n}", [1 + n], max_tokens=4, ignore_eos=True)
    answers = chained.run()
    assert "decode" in modes(chained)
    assert chained.scheduler.stats().requests_retracted == 0
    assert all(len(answer.token_ids) == 4 for answer in answers.values())


def test_chains_that_take_long_are_steps_of_their_own() -> None:
    """As long as their number of rows is such, and for a while: it may have been chance."""
    chained = bench()
    chained.add("a", [1], max_tokens=100, ignore_eos=True)
    run_timed(chained, [0.001] * 4)
    assert modes(chained)[1:] == ["chain"] * 3
    run_timed(chained, [0.5] * 4)
    assert modes(chained)[4:] == ["chain"] + ["decode"] * 3
    chained.add("b", [2], max_tokens=100, ignore_eos=True)
    run_timed(chained, [0.001] * 3)
    assert modes(chained)[-1] == "chain"


def test_slow_chains_are_tried_again() -> None:
    chained = Bench(make_limits(chain_len=LEN, num_pages=129, max_pages_per_row=128))
    chained.add("a", [1], max_tokens=400, ignore_eos=True)
    run_timed(chained, [0.001, 0.5] + [0.001] * 255)
    assert modes(chained)[1:] == ["chain"] + ["decode"] * 255
    run_timed(chained, [0.001] * 2)
    assert modes(chained)[-1] == "chain"


def run_timed(bench: Bench, times_s: list[float]) -> None:
    """Steps that take so long each, none of them in flight while the next is planned."""
    for elapsed_s in times_s:
        plan = bench.scheduler.plan_step()
        assert plan is not None
        bench.scheduler.apply(bench.runner.dispatch(plan).wait(), elapsed_s)
        bench.collect()


def test_a_size_is_tried_again_though_others_have_chains() -> None:
    chains = Chains(make_limits(chain_len=LEN), PrefixSharing(4, 0))
    rows = [SimpleNamespace(num_undrawn=9, page_order=b"", computed=8)] * 4

    def are_chained() -> bool:
        return chains.num_draws(rows, num_free_pages=99) is not None

    assert are_chained()
    chains.observe(SimpleNamespace(mode="chain", num_rows=4), 0.5)
    for _ in range(255):
        chains.observe(SimpleNamespace(mode="decode", num_rows=4), 0.001)
        chains.observe(SimpleNamespace(mode="chain", num_rows=1), 0.001)
        assert not are_chained()
    chains.observe(SimpleNamespace(mode="decode", num_rows=4), 0.001)
    assert are_chained()


def test_devices_do_not_go_through_rounds_that_nobody_wants() -> None:
    chained = bench()
    chained.add("a", [1], max_tokens=7, ignore_eos=True)
    chained.run()
    # The prompt's own draw, a chain of four, and two more.
    assert modes(chained) == ["decode", "chain", "decode", "decode"]
