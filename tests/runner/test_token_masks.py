"""Masks between a step's forward and its draw."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from jaxsgl.interface import SamplingParams
from jaxsgl.step import MaskRows
from tests.models.tiny import RandomModel, tiny_config
from tests.runner.driver import Driver
from tests.runner.tiny_runner import FEWEST_BUCKETS, make_runner

PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11]]


@pytest.fixture(scope="module")
def runner():
    return make_runner(RandomModel(tiny_config()), buckets=FEWEST_BUCKETS)


class Masks:
    """Allows each masked logit its tokens; [] skips it, None leaves it free."""

    def __init__(self, allowed: list[list[int] | tuple[()] | None]) -> None:
        self.allowed = allowed
        self.was_due = False

    def fill(self, masks: NDArray[np.uint32], is_due: Callable[[], bool]) -> MaskRows:
        mask_row = np.full(len(self.allowed), -1, np.int32)
        skipped = np.zeros(len(self.allowed), np.bool_)
        num_masks = 0
        for logit, tokens in enumerate(self.allowed):
            if tokens is not None and tokens != []:
                for token in tokens:
                    masks[num_masks, token // 32] |= np.uint32(1 << token % 32)
                mask_row[logit] = num_masks
                num_masks += 1
            skipped[logit] = tokens == []
        while not is_due():
            pass
        self.was_due = True
        return MaskRows(mask_row, skipped)


def start(runner, sampling: SamplingParams | None = None):
    """Requests whose prompts were read, and the plan of their next step."""
    runner.reset()
    driver = Driver(runner)
    requests = [
        driver.request(prompt, *([] if sampling is None else [sampling])) for prompt in PROMPTS
    ]
    driver.step([driver.prefill(request) for request in requests])
    return driver, requests


def test_only_allowed_tokens_are_drawn_and_free_rows_are_as_ever(runner):
    driver, requests = start(runner)
    free = driver.step([driver.decode(request) for request in requests]).token_ids.tolist()
    driver, requests = start(runner)
    masks = Masks([[50, 90], None, [free[2], 1]])
    result = runner.dispatch(driver.plan([driver.decode(r) for r in requests]), masks).wait()
    assert masks.was_due
    assert result.skipped is None and result.valid.all()
    assert result.token_ids[0] in (50, 90)
    assert result.token_ids[1:].tolist() == free[1:]
    assert runner.recompiles == 0


def test_prompts_that_are_read_in_the_step_are_masked_too(runner):
    driver = Driver(runner)
    runner.reset()
    requests = [driver.request(prompt) for prompt in PROMPTS]
    plan = driver.plan([driver.prefill(request) for request in requests])
    result = runner.dispatch(plan, Masks([[17], [18], [19]])).wait()
    assert result.token_ids.tolist() == [17, 18, 19]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_skipped_draw_leaves_no_trace(runner, temperature):
    """The slot goes on from the token before, and its penalties have not seen the draw."""
    sampling = SamplingParams(temperature=temperature, seed=5, frequency_penalty=1.5)
    driver, requests = start(runner, sampling)
    expected = [
        driver.step([driver.decode(request) for request in requests]).token_ids.tolist()
        for _ in range(2)
    ]
    driver, requests = start(runner, sampling)
    plan = driver.plan([driver.decode(request) for request in requests])
    result = runner.dispatch(plan, Masks([[], None, None])).wait()
    assert result.skipped.tolist() == [True, False, False]
    assert result.token_ids[1:].tolist() == expected[0][1:]
    # The first row again, by itself.
    requests[0].computed -= 1
    again = driver.step([driver.decode(requests[0])])
    assert again.skipped is None
    assert again.token_ids.tolist() == expected[0][:1]
    last = driver.step([driver.decode(request) for request in requests])
    assert last.token_ids.tolist() == expected[1]


def test_a_mask_that_allows_nothing_is_no_draw(runner):
    driver, requests = start(runner)
    plan = driver.plan([driver.decode(request) for request in requests])
    result = runner.dispatch(plan, Masks([(), None, None])).wait()
    assert result.valid.tolist() == [False, True, True]


def test_log_probabilities_are_among_the_allowed(runner):
    driver, requests = start(runner, SamplingParams(temperature=0.0, seed=0, logprobs=3))
    plan = driver.plan([driver.decode(request) for request in requests], top_logprobs=3)
    result = runner.dispatch(plan, Masks([[5, 6], None, None])).wait()
    assert np.exp(result.top_logprobs[0, :2]).sum() == pytest.approx(1, abs=1e-5)
    assert np.isneginf(result.top_logprobs[0, 2])
    assert set(result.top_ids[0, :2].tolist()) == {5, 6}
