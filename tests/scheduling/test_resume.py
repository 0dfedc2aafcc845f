"""An answer that goes on at another scheduler is the answer it would have been."""

from __future__ import annotations

import pytest

from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.interface import SamplingParams
from jaxsgl.scheduling.outputs import RowOutput
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from tests.fake_runner import EOS_ID, VOCAB_SIZE, FakeRunner, expected_tokens

TOKEN_BYTES = [b""] + [bytes([64 + i]) for i in range(1, VOCAB_SIZE)]
PROMPT = [5, 6, 7, 8, 9]


def run(sampling: SamplingParams, told: list[int], num_steps: int = 200) -> list[RowOutput]:
    """What one replica says of a request in so many steps; the books are in order after it."""
    runner = FakeRunner()
    limits = runner.limits
    cache = KVCacheManager(limits.num_pages, limits.page_size)
    scheduler = Scheduler(
        limits, cache, Vocabulary(TOKEN_BYTES, (EOS_ID,)), SchedulingSettings(max_len=100)
    )
    scheduler.add("r", PROMPT, sampling, answer_ids=told, cached_tokens=3)
    rows: list[RowOutput] = []
    for _ in range(num_steps):
        plan = scheduler.plan_step()
        if plan is None:
            break
        scheduler.apply(runner.dispatch(plan).wait())
        rows += scheduler.take_outputs().rows
        scheduler.check()
    return rows


def text_of(tokens: list[int]) -> str:
    return b"".join(TOKEN_BYTES[token] for token in tokens).decode()


ANSWER = expected_tokens(PROMPT, 24, ignore_eos=True)
STOP = text_of(ANSWER[15:18])
ALMOST = text_of(ANSWER[4:7]) + "!"

SAMPLINGS = {
    "plain": SamplingParams(max_tokens=24, seed=0, ignore_eos=True),
    "ends by itself": SamplingParams(max_tokens=80, seed=0),
    "stop string": SamplingParams(max_tokens=24, seed=0, ignore_eos=True, stop=(STOP,)),
    "almost a stop string": SamplingParams(
        max_tokens=24, seed=0, ignore_eos=True, stop=(ALMOST, text_of(ANSWER[22:24]))
    ),
    "no stop before": SamplingParams(
        max_tokens=24, seed=0, ignore_eos=True, stop=(STOP,), min_tokens=20
    ),
    "log-probabilities": SamplingParams(
        max_tokens=24, seed=0, ignore_eos=True, logprobs=2, prompt_logprobs=True
    ),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_cut_anywhere_it_goes_on_without_a_gap_or_repetition(sampling: SamplingParams):
    whole = run(sampling, [])
    tokens = [token for row in whole for token in row.token_ids]
    assert len(tokens) > 10
    for cut in range(1, len(whole)):
        told = [token for row in whole[:cut] for token in row.token_ids]
        rest = run(sampling, told)
        assert told + [token for row in rest for token in row.token_ids] == tokens
        assert b"".join(r.data for r in whole[:cut] + rest) == b"".join(r.data for r in whole)
        assert rest[-1].finish == whole[-1].finish
        assert rest[-1].completion_tokens == whole[-1].completion_tokens
        assert {row.prompt_tokens for row in rest} == {len(PROMPT)}
        assert {row.cached_tokens for row in rest} == {3}
        assert all(row.prompt_logprobs is None for row in rest)
        if sampling.logprobs is not None:
            logprobs = [entry for row in whole[:cut] + rest for entry in row.logprobs or ()]
            assert logprobs == [entry for row in whole for entry in row.logprobs or ()]


def test_one_token_told_more_is_another_answer():
    """The control: else the test above would say nothing."""
    sampling = SAMPLINGS["plain"]
    whole = [token for row in run(sampling, []) for token in row.token_ids]
    wrong = [*whole[:5], whole[5] % (VOCAB_SIZE - 1) + 1]
    rest = [token for row in run(sampling, wrong) for token in row.token_ids]
    assert wrong + rest != whole


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a prompt of 100 tokens"):
        run(SAMPLINGS["plain"], [1] * 95)
