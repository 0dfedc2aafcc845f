"""Greedy answers of a real, tiny model in float32: whatever the settings, the same tokens."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import jaxsgl
from jaxsgl.interface import EngineStats
from jaxsgl.offline.engine import Engine
from tests.loading.tiny_models import tiny_model, write_folder

type Tokens = list[list[int]]

NUM_PROMPTS = 16
ANSWER_LEN = 24
NUM_LONG_ANSWERS = 10
LONG_ANSWER_LEN = 120
SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "skip_tokenizer_init": True,
    "max_num_reqs": NUM_PROMPTS,
    "page_size": 16,
    "chunked_prefill_size": 64,
    # The scheduler begins seven of the long answers at once, and has room for five.
    "max_total_tokens": 768,
}
FEW_PROGRAMS = {"max_num_reqs": 2, "chunked_prefill_size": 16}
"""Each takes a second or two to compile."""


def greedy(answer_len: int) -> dict[str, Any]:
    return {"max_new_tokens": answer_len, "temperature": 0, "ignore_eos": True}


def make_prompts(seed: int) -> Tokens:
    """From one token to four chunks of 64; every other one begins like its neighbour."""
    rng = random.Random(seed)
    prompts: Tokens = []
    for n in range(NUM_PROMPTS):
        length = rng.randint(1, 20) if n % 4 < 2 else rng.randint(65, 200)
        shared = prompts[-1][: length // 2] if n % 2 else []
        prompts.append(shared + [rng.randrange(1, 128) for _ in range(length - len(shared))])
    return prompts


def make_short_prompts(seed: int) -> Tokens:
    """For long answers, the growth of which is what makes a scheduler retract."""
    rng = random.Random(seed)
    lengths = [rng.randint(4, 20) for _ in range(NUM_LONG_ANSWERS)]
    return [[rng.randrange(1, 128) for _ in range(length)] for length in lengths]


@dataclass(frozen=True)
class Answers:
    """To `make_prompts`, and to `make_short_prompts` at length."""

    many: Tokens
    long: Tokens


@dataclass(frozen=True)
class Outcome:
    together: Answers
    alone: Tokens
    """To `make_prompts`, one at a time, with what they left in the cache when they ran together."""
    stats: EngineStats


def run(folder: Path, seed: int, **settings: Any) -> Outcome:
    with jaxsgl.Engine(folder, **SETTINGS | settings) as engine:
        together = Answers(
            answers(engine, make_prompts(seed), ANSWER_LEN),
            answers(engine, make_short_prompts(seed), LONG_ANSWER_LEN),
        )
        alone = one_by_one(engine, make_prompts(seed), ANSWER_LEN)
        stats = engine.stats()
    assert stats.recompiles == stats.cache_rebuilds == 0
    return Outcome(together, alone, stats)


def run_alone(folder: Path, seed: int) -> Answers:
    """What all others are compared with: one request at a time, and nothing is reused."""
    with jaxsgl.Engine(folder, **SETTINGS, radix_cache=False, overlap=False) as engine:
        expected = Answers(
            one_by_one(engine, make_prompts(seed), ANSWER_LEN),
            one_by_one(engine, make_short_prompts(seed), LONG_ANSWER_LEN),
        )
        assert engine.stats().cached_tokens == engine.stats().requests_retracted == 0
    return expected


def answers(engine: Engine, prompts: Tokens, answer_len: int) -> Tokens:
    batch = engine.generate(input_ids=prompts, sampling_params=greedy(answer_len))
    return [answer["output_ids"] for answer in batch]


def one_by_one(engine: Engine, prompts: Tokens, answer_len: int) -> Tokens:
    return [answers(engine, [prompt], answer_len)[0] for prompt in prompts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny"), tiny_model())


@pytest.fixture(scope="module")
def expected(folder: Path) -> Answers:
    answers = run_alone(folder, 0)
    assert {len(answer) for answer in answers.many} == {ANSWER_LEN}
    assert {len(answer) for answer in answers.long} == {LONG_ANSWER_LEN}
    assert len({tuple(answer) for answer in answers.many}) > NUM_PROMPTS / 2
    return answers


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no overlap"])
@pytest.mark.parametrize("radix_cache", [True, False], ids=["cache", "no cache"])
def test_neighbours_cache_overlap_and_retraction(folder, expected, radix_cache, overlap):
    outcome = run(folder, 0, radix_cache=radix_cache, overlap=overlap)
    assert outcome.together == expected
    assert outcome.alone == expected.many
    assert (outcome.stats.cached_tokens > 0) == radix_cache
    assert outcome.stats.requests_retracted > 0 and outcome.stats.recomputed_tokens > 0


@pytest.mark.parametrize("page_size", [1, pytest.param(64, marks=pytest.mark.long)])
def test_other_pages_and_chunks(folder, expected, page_size):
    outcome = run(folder, 0, page_size=page_size, **FEW_PROGRAMS)
    assert outcome.together == expected
    assert outcome.alone == expected.many


@pytest.mark.long
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("chunk", [16, 64, 512])
def test_every_combination(folder, page_size, chunk):
    """Each with prompts of its own."""
    seed = 100 * page_size + chunk
    expected = run_alone(folder, seed)
    for radix_cache, overlap in itertools.product([True, False], [True, False]):
        settings = {"page_size": page_size, "chunked_prefill_size": chunk}
        outcome = run(folder, seed, radix_cache=radix_cache, overlap=overlap, **settings)
        assert outcome.together == expected, (radix_cache, overlap)
        assert outcome.alone == expected.many, (radix_cache, overlap)
        assert outcome.stats.requests_retracted > 0


@pytest.mark.long
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_llama3_rope", "tiny_qwen2"])
def test_other_prompts_and_models(tmp_path, name):
    folder = write_folder(tmp_path, tiny_model(name))
    for seed in range(1, 9):
        expected, outcome = run_alone(folder, seed), run(folder, seed)
        assert outcome.together == expected, seed
        assert outcome.alone == expected.many, seed
        assert outcome.stats.requests_retracted > 0
