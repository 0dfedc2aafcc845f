"""Several decode steps in one program draw what as many steps draw."""

import dataclasses

import numpy as np
import pytest

from jaxsgl.interface import SamplingParams
from jaxsgl.runner.chain import drawn_in_chain, pack_chain
from jaxsgl.step import LAST_TOKEN
from tests.models.tiny import golden_model
from tests.runner.driver import GREEDY, Driver
from tests.runner.tiny_runner import CHAIN, CPU, FEWEST_BUCKETS, make_runner

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]
SAMPLINGS = [
    GREEDY,
    SamplingParams(temperature=1.0, top_p=0.9, seed=7),
    SamplingParams(temperature=0.8, top_k=20, min_p=0.01, seed=8),
]


@pytest.fixture(scope="module", params=["as shaped", "inputs first"])
def runner(request):
    """However matrices lie in memory."""
    platform = dataclasses.replace(CPU, matrix_order=request.param)
    runner = make_runner(golden_model("tiny_llama"), None, (*FEWEST_BUCKETS, CHAIN), platform)
    yield runner
    runner.close()


@pytest.fixture
def driver(runner):
    runner.reset()
    yield Driver(runner)
    assert runner.recompiles == 0


def one_by_one(driver, num_tokens):
    return driver.generate(PROMPTS, num_tokens, SAMPLINGS)


@pytest.mark.parametrize("chain_len", [2, 4])
def test_tokens_are_those_of_single_steps(driver, chain_len):
    chained = driver.generate(PROMPTS, 14, SAMPLINGS, chain_len=chain_len)
    assert chained == one_by_one(driver, 14)


def test_rows_draw_as_many_as_each_wants(driver):
    """And nothing is left of the rounds that the others went on for."""
    expected = one_by_one(driver, 12)
    requests = [driver.request(*pair) for pair in zip(PROMPTS, SAMPLINGS, strict=True)]
    for request in requests:
        driver.step([driver.prefill(request)])
    for counts in ((4, 1, 2), (1, 4, 3), (3, 3, 3)):
        works = [driver.decode(*pair) for pair in zip(requests, counts, strict=True)]
        driver.step(works)
    for request in requests:
        while len(request.drawn) < 12:
            driver.step([driver.decode(request)])
    assert [request.drawn for request in requests] == expected


def test_the_first_token_may_be_given(driver):
    """As that of a prompt is that was cached whole; it is not written again."""
    (expected,) = driver.generate([PROMPTS[0]], 5)
    request = driver.request(PROMPTS[0])
    driver.step([driver.prefill(request)])
    request.drawn.clear()
    request.computed -= 1
    plan = driver.plan([driver.decode(request, 4)])
    given = np.full(4, LAST_TOKEN, np.int32)
    given[0] = PROMPTS[0][-1]
    shared_len = np.array([len(PROMPTS[0])], np.int32)
    plan = dataclasses.replace(plan, mode="chain", token_ids=given, write_from=shared_len)
    result = driver.runner.dispatch(plan).wait()
    assert result.token_ids.tolist() == expected[:4]


def test_what_a_plan_wants_is_found_among_the_rounds(driver):
    request, other = driver.request([1]), driver.request([2])
    for each in (request, other):
        driver.step([driver.prefill(each)])
    plan = driver.plan([driver.decode(request, 3), driver.decode(other, 1)])
    drawn = np.arange(16, dtype=np.int32).reshape(4, 4)
    assert drawn_in_chain(plan, drawn).tolist() == [0, 4, 8, 1]


def test_padding_draws_nothing(driver):
    request = driver.request([1])
    driver.step([driver.prefill(request)])
    programs = driver.runner.programs
    vector = pack_chain(driver.plan([driver.decode(request, 3)]), programs.chain[CHAIN].fields, 16)
    arrays = programs.chain[CHAIN].fields.unpack(vector)
    assert arrays["num_draws"].tolist() == [3, 0, 0, 0]
    assert arrays["slot"].tolist() == [request.slot, 16, 16, 16]
