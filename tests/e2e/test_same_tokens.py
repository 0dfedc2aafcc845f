"""The real model draws the reference's tokens, whatever shares its steps, cache and chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from jaxsgl.config import EngineConfig
from jaxsgl.interface import SamplingParams
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.locate import locate_model
from jaxsgl.runner.build import build_runner
from jaxsgl.runner.runner import ModelRunner
from tests.e2e.jax_options import jax_options_restored
from tests.e2e.scheduled_host import Answer, Host
from tests.e2e.server_process import ROOT

GOLDEN_FOLDER = ROOT / "tests/goldens"
GOLDENS = json.loads((GOLDEN_FOLDER / "smollm2_greedy.json").read_text())["prompts"]
NUM_COMPARED = 8
"""Tokens per answer where many settings are gone through."""


@pytest.fixture(scope="module")
def runner() -> Iterator[ModelRunner]:
    """The default model in this process, with every program compiled."""
    checkpoint = open_checkpoint(locate_model(None))
    config = EngineConfig(max_total_tokens=8192, num_continuous_decode_steps=3)
    with jax_options_restored():
        runner = build_runner(config, checkpoint, lambda stage, done, total: None)
        yield runner
        runner.close()
    assert runner.recompiles == 0


@pytest.mark.parametrize("chains", [True, False], ids=["chains", "single steps"])
def test_20_chats_have_the_ids_of_the_reference(runner: ModelRunner, chains: bool):
    assert len(GOLDENS) == 20
    host = Host(runner, chains=chains)
    answers = host.generate([golden["prompt_ids"] for golden in GOLDENS], 32)
    for golden, answer in zip(GOLDENS, answers, strict=True):
        assert answer.token_ids == golden["output_ids"], golden["name"]
    assert ("chain" in host.modes) == chains


@pytest.mark.parametrize("chunk", [64, 256])
@pytest.mark.parametrize("radix", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])
def test_neighbours_cache_and_chunks_change_nothing(runner, together, radix, chunk):
    """16 prompts of 38 to 265 tokens; with the cache on they are asked again, and found there."""
    goldens = sorted(GOLDENS, key=lambda golden: len(golden["prompt_ids"]))[-16:]
    if not together and chunk == 64:
        # Alone, a prompt that fits one chunk takes the same steps as with larger ones.
        goldens = [golden for golden in goldens if len(golden["prompt_ids"]) > chunk]
        assert len(goldens) >= 4
    prompts = [golden["prompt_ids"] for golden in goldens]
    host = Host(runner, radix=radix, chunk=chunk)
    batches = [prompts] if together else [[prompt] for prompt in prompts]
    for num_before in range(2 if radix else 1):
        answers = [answer for batch in batches for answer in host.generate(batch, NUM_COMPARED)]
        for golden, answer in zip(goldens, answers, strict=True):
            assert answer.token_ids == golden["output_ids"][:NUM_COMPARED], golden["name"]
            assert answer.cached_tokens >= 16 * num_before


def test_overlap_changes_nothing(runner: ModelRunner):
    goldens = GOLDENS[:8]
    answers = Host(runner, overlap=False).generate([g["prompt_ids"] for g in goldens], 16)
    assert [a.token_ids for a in answers] == [g["output_ids"][:16] for g in goldens]


@pytest.mark.parametrize("num_seeds", [16, pytest.param(100, marks=pytest.mark.long)])
def test_a_draw_depends_on_its_seed_and_not_on_its_neighbours(runner: ModelRunner, num_seeds: int):
    prompt = GOLDENS[0]["prompt_ids"]
    requests = [
        (prompt, SamplingParams(max_tokens=10, temperature=1.0, seed=seed, ignore_eos=True))
        for seed in range(num_seeds)
    ]
    host = Host(runner)
    together: list[Answer] = []
    for begin in range(0, num_seeds, 16):
        together += host.ask(requests[begin : begin + 16])
    for request, answer in zip(requests, together, strict=True):
        assert host.ask([request])[0].token_ids == answer.token_ids
    assert len({tuple(answer.token_ids) for answer in together}) > num_seeds / 2


def test_log_probabilities_are_those_of_the_reference(runner: ModelRunner):
    goldens = json.loads((GOLDEN_FOLDER / "smollm2_logprobs.json").read_text())["prompts"]
    sampling = SamplingParams(
        max_tokens=32, temperature=0, seed=0, ignore_eos=True, logprobs=5, prompt_logprobs=True
    )
    answers = Host(runner).ask([(golden["prompt_ids"], sampling) for golden in goldens])
    for golden, answer in zip(goldens, answers, strict=True):
        assert answer.token_ids == golden["output_ids"]
        drawn = [entry.logprob for entry in answer.logprobs]
        np.testing.assert_allclose(drawn, golden["output_logprobs"], atol=1e-4, rtol=0)
        top = [[logprob for _, logprob in entry.top] for entry in answer.logprobs]
        np.testing.assert_allclose(top, golden["top_logprobs"], atol=1e-4, rtol=0)
        assert answer.prompt_logprobs[0] is None
        prompt = [entry.logprob for entry in answer.prompt_logprobs if entry is not None]
        np.testing.assert_allclose(prompt, golden["prompt_logprobs"], atol=1e-4, rtol=0)
