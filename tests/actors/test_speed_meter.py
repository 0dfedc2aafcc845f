"""What a replica tells about its speed."""

import dataclasses

import numpy as np
import pytest

from jaxsgl.actors.speed_meter import SpeedMeter
from jaxsgl.runner.runner import NOTHING
from jaxsgl.step import StepPlan


def plan(num_rows: int, num_tokens: int) -> StepPlan:
    """Rows of one token each, but for the last."""
    q_start = np.append(np.arange(num_rows, dtype=np.int32), np.int32(num_tokens))
    return dataclasses.replace(
        NOTHING,
        mode="decode" if num_tokens == num_rows else "mixed",
        slot=np.arange(num_rows, dtype=np.int32),
        q_start=q_start,
        token_ids=np.zeros(num_tokens, np.int32),
    )


def run(meter: SpeedMeter, steps: list[tuple[int, int, float]], now_s: float = 0.0) -> float:
    """Steps of (rows, tokens, seconds), one after another."""
    for num_rows, num_tokens, elapsed_s in steps:
        meter.step_begun(plan(num_rows, num_tokens), now_s)
        now_s += elapsed_s
        assert meter.step_ended(now_s) == pytest.approx(elapsed_s)
    return now_s


def test_short_prompts_say_little_about_the_time_of_a_token() -> None:
    meter = SpeedMeter(chain_len=5)
    now_s = run(meter, [(1, 8192, 0.2)] * 4)
    run(meter, [(1, 8, 0.007)] * 4, now_s)
    assert meter.speed.prefill_token_s == pytest.approx(0.2 / 8192, rel=0.1)


def test_a_slow_first_step_is_forgotten_with_the_tokens_that_follow() -> None:
    meter = SpeedMeter(chain_len=5)
    now_s = run(meter, [(1, 1024, 1.0)])
    assert meter.speed.prefill_token_s == pytest.approx(1.0 / 1024)
    run(meter, [(8, 8192, 0.2)] * 40, now_s)
    assert meter.speed.prefill_token_s == pytest.approx(0.2 / 8192, rel=0.02)


def test_decode_steps_are_averaged_by_themselves() -> None:
    meter = SpeedMeter(chain_len=5)
    now_s = run(meter, [(16, 16, 0.02)])
    assert meter.speed == type(meter.speed)(0.0, 0.02)
    run(meter, [(16, 16, 0.01), (2, 1000, 0.1)], now_s)
    assert meter.speed.decode_step_s == pytest.approx(0.019)
    assert meter.speed.prefill_token_s == pytest.approx(1e-4)


def test_a_step_that_waits_behind_another_counts_from_its_end() -> None:
    meter = SpeedMeter(chain_len=5)
    meter.step_begun(plan(1, 100), 0.0)
    meter.step_begun(plan(1, 100), 0.1)
    assert meter.step_ended(1.0) == 1.0
    assert meter.step_ended(1.5) == 0.5


def test_a_chain_is_so_many_decode_steps_whatever_its_rows_want() -> None:
    meter = SpeedMeter(chain_len=5)
    q_start = np.array([0, 4, 7], np.int32)
    chain = dataclasses.replace(plan(2, 2), mode="chain", q_start=q_start)
    meter.step_begun(dataclasses.replace(chain, token_ids=np.zeros(7, np.int32)), 0.0)
    meter.step_ended(0.05)
    assert meter.speed.decode_step_s == pytest.approx(0.01)
    assert meter.speed.prefill_token_s == 0.0
