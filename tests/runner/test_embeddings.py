"""Hidden states as the runner brings them, against what HuggingFace's logits say they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.models.tiny import GoldenModel, golden_model
from tests.runner.driver import Driver
from tests.runner.tiny_runner import FEWEST_BUCKETS, make_runner


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_qwen2"])
def golden(request: pytest.FixtureRequest) -> GoldenModel:
    return golden_model(request.param)


def head(golden: GoldenModel) -> np.ndarray:
    tied = golden.config.tie_embeddings
    return golden.tensor("model.embed_tokens.weight" if tied else "lm_head.weight")


def huggingface_hidden(golden: GoldenModel) -> np.ndarray:
    """The last hidden states [tokens, embed]: the only ones of which the head makes those
    logits."""
    hidden, *_ = np.linalg.lstsq(head(golden).astype(np.float64), golden.logits.T.astype(float))
    return hidden.T


def test_hidden_states_are_those_of_huggingface(golden: GoldenModel) -> None:
    assert np.linalg.matrix_rank(head(golden)) == golden.config.hidden_size
    expected = huggingface_hidden(golden)
    np.testing.assert_allclose(expected @ head(golden).T, golden.logits, atol=1e-4)  # a control
    runner = make_runner(golden, buckets=FEWEST_BUCKETS)
    try:
        driver = Driver(runner)
        whole, parts = (driver.request(golden.input_ids.tolist()) for _ in range(2))
        short = driver.request(golden.input_ids[:5].tolist())
        works = [driver.prefill(whole), driver.prefill(short)]
        plan = dataclasses.replace(driver.plan(works), wants_hidden=True)
        hidden = runner.dispatch(plan).wait().hidden
        assert hidden is not None and hidden.dtype == np.float32
        np.testing.assert_allclose(hidden, expected[[47, 4]], atol=5e-4)
        assert np.abs(hidden - expected[[46, 3]]).max() > 0.1  # the tolerance notices a neighbour
        while parts.computed < 40:
            assert driver.step([driver.prefill(parts, 20)]).hidden is None
        last = dataclasses.replace(driver.plan([driver.prefill(parts)]), wants_hidden=True)
        hidden = runner.dispatch(last).wait().hidden
        np.testing.assert_allclose(hidden, expected[[47]], atol=5e-4)
        assert runner.recompiles == 0
    finally:
        runner.close()
