"""A real, tiny model with few pages: what fits, and whose prefixes go first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jaxsgl
from jaxsgl.config import ConfigError
from jaxsgl.interface import GenerateRequest, InvalidRequest, SamplingParams, TokenPrompt
from jaxsgl.offline.engine import Engine
from jaxsgl.replicas.launch import StartError
from tests.loading.tiny_models import tiny_model, write_folder

POOL_LEN = 160
"""Tokens that the pool holds; the model's context is 256."""
SETTINGS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "page_size": 4,
    "max_num_reqs": 1,
    "chunked_prefill_size": 16,
    "max_total_tokens": POOL_LEN,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny"), tiny_model())


class Asker:
    """Asks an engine within cache namespaces, which HTTP calls `cache_salt`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids = map(str, itertools.count())

    def cached_tokens(self, prompt: list[int], namespace: str) -> int:
        request = GenerateRequest(
            request_id=next(self._ids),
            prompt=TokenPrompt(prompt),
            sampling=SamplingParams(max_tokens=1, temperature=0),
            cache_namespace=namespace,
        )

        async def ask() -> int:
            deltas = [delta async for delta in self._engine._engine.generate(request)]
            return deltas[-1].usage.cached_tokens

        return self._engine._loop.run(ask())


@pytest.fixture(params=[None, 0.25], ids=["no quota", "quota"])
def quota_and_asker(
    folder: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[float | None, Asker]]:
    with jaxsgl.Engine(folder, **SETTINGS, cache_quota=request.param) as engine:
        yield request.param, Asker(engine)


def test_who_floods_the_cache_evicts_others_only_without_a_quota(quota_and_asker):
    quota, asker = quota_and_asker
    prompt = list(range(1, 34))  # 8 whole pages of the pool's 40: below the quota of 10
    assert asker.cached_tokens(prompt, "modest") == 0
    for n in range(40, 52):  # 96 pages
        assert asker.cached_tokens([n] * 33, "greedy") == 0
    assert asker.cached_tokens(prompt, "modest") == (0 if quota is None else 32)
    # What somebody has beyond the quota is of use as long as nobody else wants the room.
    assert asker.cached_tokens([51] * 33, "greedy") == 32


def test_a_prompt_that_fits_the_context_and_not_the_pool_is_refused(folder):
    with jaxsgl.Engine(folder, **SETTINGS) as engine:
        assert engine.model.context_len == POOL_LEN
        params = {"max_new_tokens": 1, "temperature": 0}
        for prompt_len in (POOL_LEN, 200):
            with pytest.raises(InvalidRequest, match=f"at most {POOL_LEN} tokens fit") as caught:
                engine.generate(input_ids=[1] * prompt_len, sampling_params=params)
            assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
        answer = engine.generate(input_ids=[1] * (POOL_LEN - 1), sampling_params=params)
        assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 1}


@pytest.mark.parametrize("quota", [-0.1, 1.5, float("nan")])
def test_a_quota_is_a_share(folder, quota):
    with pytest.raises((ConfigError, StartError), match=f"--cache-quota {quota:g} is not a share"):
        jaxsgl.Engine(folder, **SETTINGS, cache_quota=quota)
