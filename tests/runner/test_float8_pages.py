"""A whole runner whose keys and values take a byte each."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxsgl.runner.runner import ModelRunner
from tests.models.tiny import golden_model
from tests.runner.driver import Driver
from tests.runner.tiny_runner import FEWEST_BUCKETS, make_runner

GOLDEN = golden_model("tiny_llama")
PROMPT = GOLDEN.input_ids.tolist()


@pytest.fixture(scope="module")
def runner() -> Iterator[ModelRunner]:
    runner = make_runner(GOLDEN, buckets=FEWEST_BUCKETS, kv_dtype=jnp.float8_e4m3fn)
    yield runner
    assert runner.recompiles == 0
    runner.close()


def draws(runner: ModelRunner, chunk: int | None) -> NDArray[np.float32]:
    """Log-probability of the first draw after a prompt computed in chunks, and of five more."""
    driver = Driver(runner)
    request = driver.request(PROMPT)
    found: list[float] = []
    while len(found) < 6:
        work = driver.prefill(request, chunk) if not request.drawn else driver.decode(request)
        result = driver.step([work], top_logprobs=0)
        if len(result.token_ids):
            assert result.logprobs is not None
            found.append(float(result.logprobs[0]))
    driver.release(request)
    return np.array(found, np.float32)


def test_pages_take_a_byte_for_each_value(runner: ModelRunner) -> None:
    pages = jax.tree.leaves(runner._memory.kv)
    assert {page.dtype for page in pages} == {jnp.dtype(jnp.float8_e4m3fn)}
    limits, config = runner.limits, GOLDEN.config
    values = limits.num_pages * limits.page_size * config.num_kv_heads * config.head_dim
    assert sum(page.nbytes for page in pages) == 2 * config.num_layers * values


def test_cutting_the_prompt_changes_nothing(runner: ModelRunner) -> None:
    """Every token reads its own key and value as the pages hold them."""
    whole = draws(runner, None)
    np.testing.assert_allclose(draws(runner, 5), whole, atol=1e-5)


def test_they_are_rounded_and_no_more(runner: ModelRunner) -> None:
    last = GOLDEN.logits[-1].astype(np.float64)
    expected = last.max() - np.log(np.exp(last).sum())
    assert 1e-5 < abs(draws(runner, None)[0] - expected) < 0.1
