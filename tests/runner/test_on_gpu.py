"""Whole runners on a GPU, as an engine builds them, against the CPU's tokens."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxsgl.config import EngineConfig
from jaxsgl.runner.build import build_runner
from tests.models.tiny import GOLDEN_MODELS, golden_model
from tests.runner.driver import Driver
from tests.runner.tiny_runner import make_runner

pytestmark = pytest.mark.gpu

PROMPTS = [np.random.default_rng(i).integers(0, 128, 3 + 7 * i % 40).tolist() for i in range(16)]


def generate(runner, chain_len=1):
    """24 tokens after each prompt, a few prompts at a time: tiny runners have few pages."""
    driver = Driver(runner)
    return [
        driver.generate(PROMPTS[start : start + 4], 24, chain_len=chain_len)
        for start in range(0, 16, 4)
    ]


@pytest.fixture(params=["triton", "xla"])
def gpu_runner(request, tmp_path, golden, expected):
    # After the CPU's runner is done: what that compiles would count as this one's.
    config = EngineConfig(
        dtype="float32",
        attention_backend=request.param,
        max_num_reqs=16,
        chunked_prefill_size=64,
        max_total_tokens=4096,
        num_continuous_decode_steps=5,
        compilation_cache_dir=str(tmp_path),
    )
    runner = build_runner(config, golden, lambda *report: None)
    assert (runner.backend, runner.layout.mesh.devices.flat[0].platform) == (request.param, "gpu")
    yield runner
    runner.close()


@pytest.fixture(params=GOLDEN_MODELS)
def golden(request):
    return golden_model(request.param)


@pytest.fixture
def expected(golden):
    cpu = make_runner(golden, Mesh(np.array(jax.devices("cpu")[:1]), ("tp",)))
    tokens = generate(cpu)
    cpu.close()
    return tokens


def test_greedy_tokens_are_those_of_the_cpu(expected, gpu_runner):
    assert generate(gpu_runner) == expected
    assert generate(gpu_runner, chain_len=5) == expected
    assert gpu_runner.recompiles == 0
