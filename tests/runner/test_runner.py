"""A whole runner on tiny models: what comes out must not depend on how the work was cut up."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxsgl.interface import MAX_TOP_LOGPROBS, SamplingParams
from tests.models.tiny import RandomModel, golden_model, tiny_config
from tests.runner.driver import Driver, Work
from tests.runner.tiny_runner import FEWEST_BUCKETS, make_runner

PROMPTS = [np.random.default_rng(i).integers(0, 128, 3 + 5 * i % 23).tolist() for i in range(16)]


@pytest.fixture(scope="module")
def golden():
    return golden_model("tiny_llama")


@pytest.fixture(scope="module")
def shared_runner(golden):
    runner = make_runner(golden)
    yield runner
    runner.close()


@pytest.fixture
def driver(shared_runner):
    """Tests that use it make no programs of their own, and the runner must not either."""
    shared_runner.reset()
    before = shared_runner.recompiles
    yield Driver(shared_runner)
    assert shared_runner.recompiles == before


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("chunk", [None, 1, 5, 16])
def test_prompt_logprobs_agree_with_huggingface(driver, golden, chunk):
    request = driver.request(golden.input_ids.tolist())
    logprobs, top_ids = [], []
    while request.computed < len(request.prompt):
        result = driver.step([driver.prefill(request, chunk, score=True)], top_logprobs=5)
        logprobs.append(result.logprobs)
        top_ids.append(result.top_ids)
    expected = log_softmax(golden.logits)
    targets = [*golden.input_ids[1:], request.drawn[0]]
    assert request.drawn[0] == golden.logits[-1].argmax()
    np.testing.assert_allclose(
        np.concatenate(logprobs), expected[np.arange(48), targets], atol=1e-4
    )
    best = np.argsort(-expected, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(np.concatenate(top_ids)[:, :5], best)


def test_top_logprobs_are_those_of_the_whole_vocabulary(driver, golden):
    request = driver.request(golden.input_ids.tolist())
    result = driver.step([driver.prefill(request)], top_logprobs=MAX_TOP_LOGPROBS)
    expected = -np.sort(-log_softmax(golden.logits[-1]))[:MAX_TOP_LOGPROBS]
    np.testing.assert_allclose(result.top_logprobs, expected[None], atol=1e-4)


def test_only_what_was_asked_for_is_brought_back(driver):
    request = driver.request([1, 2, 3])
    plain = driver.step([driver.prefill(request)])
    chosen = driver.step([driver.decode(request)], top_logprobs=0)
    assert plain.logprobs is None and plain.top_ids is None
    assert chosen.logprobs is not None and chosen.top_ids is None


def test_hidden_states_are_those_of_huggingface(driver, golden):
    """Of which its logits are made: there are no others that the head makes the same of."""
    head = golden.tensor("model.embed_tokens.weight").astype(np.float64)
    assert golden.config.tie_embeddings
    assert np.linalg.matrix_rank(head) == golden.config.hidden_size
    expected = np.linalg.lstsq(head, golden.logits.T.astype(np.float64))[0].T
    whole, parts = (driver.request(golden.input_ids.tolist()) for _ in range(2))
    works = [driver.prefill(whole), driver.prefill(driver.request(golden.input_ids[:5].tolist()))]
    result = hidden_states(driver, works)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected[[47, 4]], atol=5e-4)
    assert np.abs(result - expected[[46, 3]]).max() > 0.1  # the tolerance notices a neighbour
    while parts.computed < 40:
        assert driver.step([driver.prefill(parts, 20)]).hidden is None
    result = hidden_states(driver, [driver.prefill(parts)])
    np.testing.assert_allclose(result, expected[[47]], atol=5e-4)


def hidden_states(driver, works):
    plan = dataclasses.replace(driver.plan(works), wants_hidden=True)
    return driver.runner.dispatch(plan).wait().hidden


def test_rows_together_draw_what_each_draws_alone(driver):
    together = driver.generate(PROMPTS, 12)
    assert [driver.generate([prompt], 12)[0] for prompt in PROMPTS] == together
    assert len({tuple(tokens) for tokens in together}) > 8


def test_chunks_and_other_pages_change_nothing(shared_runner, driver):
    whole = driver.generate(PROMPTS[:4], 8)
    shared_runner.reset()
    assert Driver(shared_runner, seed=1).generate(PROMPTS[:4], 8, chunk=3) == whole


def test_prefill_and_decode_share_a_step(driver):
    alone = driver.generate(PROMPTS[:2], 4)
    first, second = (driver.request(prompt) for prompt in PROMPTS[:2])
    driver.step([driver.prefill(first)])
    driver.step([driver.decode(first), driver.prefill(second, chunk=2)])
    driver.step([driver.prefill(second), driver.decode(first)])
    driver.step([driver.decode(second), driver.decode(first)])
    assert first.drawn == alone[0]
    assert second.drawn == alone[1][:2]


def test_a_step_may_be_dispatched_before_the_last_is_read(driver, shared_runner):
    one_by_one = driver.generate(PROMPTS[:3], 6)
    requests = [driver.request(prompt) for prompt in PROMPTS[:3]]
    plans = [driver.plan([driver.prefill(request) for request in requests])]
    plans += [driver.plan([driver.decode(request) for request in requests]) for _ in range(5)]
    pending = [shared_runner.dispatch(plan) for plan in plans]
    drawn = np.stack([step.wait().token_ids for step in pending], axis=1)
    assert drawn.tolist() == one_by_one


def test_a_step_that_wants_no_logits_brings_none(driver):
    request = driver.request(PROMPTS[5])
    result = driver.step([Work(request, 2, {})])
    assert len(result.token_ids) == len(result.valid) == 0


def test_not_finite_logits_mark_their_own_row_only():
    class Poisoned(RandomModel):
        """Token 7 has no finite embedding."""

        def tensor(self, name):
            tensor = super().tensor(name)
            if name == "model.embed_tokens.weight":
                tensor[7] = np.nan
            return tensor

    poisoned = Poisoned(tiny_config(tie_embeddings=False))
    runner = make_runner(poisoned, buckets=FEWEST_BUCKETS)
    driver = Driver(runner)
    requests = [driver.request(prompt) for prompt in ([3, 4], [3, 7], [5, 6])]
    result = driver.step([driver.prefill(request) for request in requests])
    assert result.valid.tolist() == [True, False, True]
    result = driver.step([driver.decode(request) for request in requests])
    assert result.valid.tolist() == [True, False, True]
    runner.close()


def test_a_failed_step_raises_until_reset_and_then_all_is_well(golden):
    runner = make_runner(golden, buckets=FEWEST_BUCKETS)
    before = Driver(runner).generate(PROMPTS[:2], 4)
    for pages in runner._memory.kv:
        pages.delete()  # what a failed step does to the arrays it was given
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        Driver(runner).generate(PROMPTS[:2], 4)
    runner.reset()
    assert Driver(runner).generate(PROMPTS[:2], 4) == before
    assert runner.recompiles == 0

    # The control: a program made after warm-up is counted.
    jax.jit(lambda x: x + runner.limits.num_pages)(np.float32(1.0))
    assert runner.recompiles == 1
    runner.close()


def test_preempted_tokens_continue_the_answer(driver):
    """A request that comes back with its answer so far as prompt draws what it would have drawn."""
    sampling = SamplingParams(temperature=1.0, seed=11)
    whole = driver.generate([PROMPTS[3]], 8, sampling)[0]
    resumed = driver.generate([PROMPTS[3] + whole[:5]], 3, sampling)[0]
    assert resumed == whole[5:]


def test_equality_of_rows_is_noticed_when_it_fails(driver):
    """The control: one changed prompt token shows in the tokens compared above."""
    changed = [[(prompt[0] + 1) % 128, *prompt[1:]] for prompt in PROMPTS]
    pairs = zip(driver.generate(PROMPTS, 12), driver.generate(changed, 12), strict=True)
    assert sum(a != b for a, b in pairs) >= 12
