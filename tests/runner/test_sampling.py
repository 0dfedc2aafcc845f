"""Sampling options through a whole runner: each row gets its own, and no other row's."""

import dataclasses

import numpy as np
import pytest

from jaxsgl.interface import SamplingParams
from jaxsgl.runner.sampler import DRAW_KINDS
from tests.models.tiny import RandomModel, tiny_config
from tests.runner.driver import GREEDY, Driver
from tests.runner.tiny_runner import CPU, FEWEST_BUCKETS, make_runner

VOCAB = 128
PROMPT = [5, 17, 99, 17, 3]
END_ID = 40


@pytest.fixture(scope="module")
def runner():
    runner = make_runner(RandomModel(tiny_config()))
    yield runner
    runner.close()


@pytest.fixture
def driver(runner):
    before = runner.recompiles
    yield Driver(runner)
    assert runner.recompiles == before


def greedy(**options):
    return SamplingParams(temperature=0.0, seed=0, **options)


def full_logprobs(driver, request, work):
    """Log-probability of every token after a step, which is repeated to ask for one at a time."""
    plan = driver.plan([work])
    values = []
    for token in range(VOCAB):
        target = dataclasses.replace(
            plan,
            logit_target=np.array([token], np.int32),
            num_top_logprobs=0,
            openings=plan.openings if token == 0 else (),
        )
        values.append(driver.runner.dispatch(target).wait().logprobs[0])
    return np.array(values, np.float64)


def expected_after(plain, adjust):
    """The log-probabilities that come of `adjust` applied to logits known up to a constant."""
    logits = adjust(plain.copy())
    return logits - np.log(np.exp(logits).sum())


def test_a_draw_depends_on_seed_and_position_only(driver):
    samplings = [SamplingParams(temperature=1.0, seed=seed) for seed in range(100, 116)]
    prompts = [np.random.default_rng(i).integers(0, VOCAB, 2 + i).tolist() for i in range(16)]
    together = driver.generate(prompts, 10, samplings)
    for prompt, sampling, tokens in zip(prompts, samplings, together, strict=True):
        assert driver.generate([prompt], 10, sampling) == [tokens]
    reseeded = [SamplingParams(temperature=1.0, seed=seed) for seed in range(200, 216)]
    assert (
        sum(a != b for a, b in zip(together, driver.generate(prompts, 10, reseeded), strict=True))
        == 16
    )


def test_all_64_bits_of_a_seed_count(driver):
    seeds = [1, 1 + 2**32, 1 + 2**63 - 2**64, -1]
    answers = [
        driver.generate([PROMPT], 12, SamplingParams(temperature=1.5, seed=seed))[0]
        for seed in seeds
    ]
    assert len({tuple(answer) for answer in answers}) == 4


def test_draws_follow_the_model_s_probabilities(driver):
    """Chi-square over the likeliest tokens of 2,000 draws; the bound is the 99.99 % quantile."""
    request = driver.request(PROMPT)
    probabilities = np.exp(full_logprobs(driver, request, driver.prefill(request)))
    driver.release(request)
    drawn = [
        tokens[0]
        for start in range(0, 2000, 16)
        for tokens in driver.generate(
            [PROMPT] * 16, 1, [SamplingParams(temperature=1.0, seed=start + i) for i in range(16)]
        )
    ]
    best = np.argsort(-probabilities)[:10]
    counts = np.array([drawn.count(token) for token in best] + [0.0])
    counts[-1] = len(drawn) - counts.sum()
    expected = len(drawn) * np.append(probabilities[best], 1.0 - probabilities[best].sum())
    assert ((counts - expected) ** 2 / expected).sum() < 35.6


@pytest.mark.parametrize(
    "narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-3}]
)
def test_narrowed_to_one_token_a_draw_is_greedy(driver, narrow):
    options = {"temperature": 2.0, "seed": 3} | narrow
    assert driver.generate([PROMPT], 6, SamplingParams(**options)) == driver.generate([PROMPT], 6)


def test_logit_bias_is_added(driver):
    request = driver.request(PROMPT)
    plain = full_logprobs(driver, request, driver.prefill(request))
    bias = {3: 2.5, 64: -4.0, 127: 100.0}
    request = driver.request(PROMPT, greedy(logit_bias=bias))
    biased = full_logprobs(driver, request, driver.prefill(request))

    def adjust(logits):
        logits[list(bias)] += list(bias.values())
        return logits

    np.testing.assert_allclose(biased, expected_after(plain, adjust), atol=1e-4)


def test_penalties_look_at_every_token_drawn(driver):
    """Two tokens into an answer the third's distribution is compared with the formula in numpy."""
    request = driver.request(PROMPT, greedy(presence_penalty=0.7, frequency_penalty=0.4))
    driver.step([driver.prefill(request)])
    driver.step([driver.decode(request)])
    penalised = full_logprobs(driver, request, driver.decode(request))

    plain_request = driver.request(PROMPT + request.drawn)
    plain = full_logprobs(driver, plain_request, driver.prefill(plain_request))
    counts = np.bincount(request.drawn, minlength=VOCAB)
    expected = expected_after(plain, lambda x: x - 0.7 * (counts > 0) - 0.4 * counts)
    assert np.abs(expected - plain).max() > 0.1
    np.testing.assert_allclose(penalised, expected, atol=1e-4)


def test_a_resumed_request_is_penalised_for_what_it_had_drawn(driver):
    sampling = greedy(frequency_penalty=1.5, repetition_penalty=1.2)
    whole = driver.generate([PROMPT], 30, sampling)[0]
    assert whole != driver.generate([PROMPT], 30)[0]

    def resume(prompt_len):
        request = driver.request(PROMPT + whole[:20], sampling)
        request.prompt_len = prompt_len
        driver.step([driver.prefill(request)])
        for _ in range(9):
            driver.step([driver.decode(request)])
        driver.release(request)
        return request.drawn

    assert resume(len(PROMPT)) == whole[20:]
    # The control: taken for a prompt, the same tokens are penalised otherwise.
    assert resume(len(PROMPT) + 20) != whole[20:]


def test_under_a_strong_penalty_no_token_comes_twice(driver):
    """The model does repeat itself without one."""
    assert len(set(driver.generate([PROMPT], 40)[0])) < 40
    assert len(set(driver.generate([PROMPT], 40, greedy(frequency_penalty=1e6))[0])) == 40


def test_end_tokens_are_held_back_until_min_tokens(driver):
    """With its bias the end token is drawn wherever it may be."""
    sampling = greedy(min_tokens=3, logit_bias={END_ID: 100.0})
    request = driver.request(PROMPT, sampling, end_ids=(END_ID, 41))
    driver.step([driver.prefill(request, 2)])
    driver.step([driver.prefill(request)])
    for _ in range(4):
        driver.step([driver.decode(request)])
    assert END_ID not in request.drawn[:3]
    assert request.drawn[3:] == [END_ID, END_ID]


def test_rows_with_options_leave_their_neighbours_alone(driver):
    options = [
        greedy(logit_bias={1: 50.0}),
        greedy(presence_penalty=2.0, repetition_penalty=1.9),
        greedy(min_tokens=5),
        SamplingParams(temperature=1.9, seed=8, top_p=0.7),
    ]
    prompts = [[i + 1, i + 2, i + 3] for i in range(8)]
    mixed = driver.generate(prompts, 8, [s for option in options for s in (option, GREEDY)])
    assert mixed[1::2] == driver.generate(prompts[1::2], 8)
    assert mixed[0::2] == [
        driver.generate([prompt], 8, option)[0]
        for prompt, option in zip(prompts[0::2], options, strict=True)
    ]


def test_a_slot_forgets_the_options_of_its_last_request(driver):
    plain = driver.generate([PROMPT], 8)
    biased = driver.generate([PROMPT], 8, greedy(logit_bias={1: 50.0}, presence_penalty=1.0))
    assert biased != plain
    for _ in range(driver.limits.num_slots):
        assert driver.generate([PROMPT], 8) == plain
    other = greedy(presence_penalty=1.0)
    assert driver.generate([PROMPT], 8, other) == driver.generate([PROMPT], 8, other)


def test_logprobs_are_those_of_temperature_one(driver):
    request = driver.request(PROMPT)
    expected = full_logprobs(driver, request, driver.prefill(request))
    hot = driver.request(PROMPT, SamplingParams(temperature=2.0, top_k=3, seed=5))
    result = driver.step([driver.prefill(hot)], top_logprobs=20)
    np.testing.assert_allclose(result.logprobs[0], expected[hot.drawn[0]], atol=1e-5)
    np.testing.assert_array_equal(result.top_ids[0], np.argsort(-expected, kind="stable")[:20])
    np.testing.assert_allclose(result.top_logprobs[0], -np.sort(-expected)[:20], atol=1e-5)
    assert np.exp(expected).sum() == pytest.approx(1.0, abs=1e-5)


def test_a_draw_that_can_do_more_draws_the_same():
    samplings = [SamplingParams(temperature=t, top_k=20, seed=7) for t in (0.0, 0.7, 1.0)]
    drawn = []
    for kinds in (("full",), DRAW_KINDS):
        platform = dataclasses.replace(CPU, draw_kinds=kinds)
        runner = make_runner(RandomModel(tiny_config()), buckets=FEWEST_BUCKETS, platform=platform)
        drawn.append(Driver(runner).generate([PROMPT] * 3, 8, samplings))
        drawn.append([Driver(runner).generate([PROMPT], 8, each)[0] for each in samplings])
        runner.close()
    assert all(tokens == drawn[0] for tokens in drawn)
