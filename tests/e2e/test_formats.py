"""One model in every format that it can be stored in, from the file to the tokens."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from jaxsgl.config import EngineConfig
from jaxsgl.convert import convert
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.default_model import default_model_path
from jaxsgl.loading.gguf_checkpoint import GgufCheckpoint
from jaxsgl.runner.build import build_runner
from jaxsgl.runner.runner import ModelRunner
from tests.e2e.http_client import HttpClient
from tests.e2e.jax_options import jax_options_restored
from tests.e2e.server_process import ROOT, ServerProcess
from tests.loading.tiny_models import TinyModel, tiny_model, write_folder, write_gguf
from tests.models.tiny import golden_model
from tests.runner.driver import Driver

GOLDENS = json.loads((ROOT / "tests/goldens/smollm2_greedy.json").read_text())["prompts"]
FORMATS = ("gguf", "safetensors", "orbax")
FEW_PROGRAMS = {"max_num_reqs": 1, "chunked_prefill_size": 64, "max_total_tokens": 256}
SERVER_ARGS = ("--max-num-reqs=2", "--chunked-prefill-size=16", "--max-total-tokens=2048")
CONTROL_TOKEN = re.compile(r"<\|\w+\|>")
MAX_ERROR = 1e-4


@pytest.fixture(autouse=True, scope="module")
def other_tests_keep_their_options() -> Iterator[None]:
    with jax_options_restored():
        yield


def build(model_path: Path, cache: Path) -> ModelRunner:
    config = EngineConfig(compilation_cache_dir=str(cache), **FEW_PROGRAMS)
    return build_runner(config, open_checkpoint(model_path), lambda stage, done, total: None)


def store(model: TinyModel, stored_as: str, folder: Path) -> Path:
    match stored_as:
        case "gguf":
            return write_gguf(folder / "Tiny-1M.gguf", model)
        case "safetensors":
            return write_folder(folder / "Tiny-1M", model, num_shards=3)
        case _:
            source = write_folder(folder / "source" / "Tiny-1M", model)
            convert(open_checkpoint(source), folder / "converted", "float32")
            return folder / "converted"


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen2"])
def test_tiny_models_compute_the_same(tmp_path: Path, name: str):
    """Log-probabilities of every prompt token to the last bit, and those of the reference."""
    golden = golden_model(name)
    ids = golden.input_ids.tolist()
    logprobs = golden.logits - np.logaddexp.reduce(golden.logits, axis=1, keepdims=True)
    expected = logprobs[np.arange(len(ids) - 1), ids[1:]]

    scores, answers = {}, {}
    for stored_as in FORMATS:
        runner = build(store(tiny_model(name), stored_as, tmp_path), tmp_path / "cache")
        driver = Driver(runner)
        scores[stored_as] = _scores(driver, ids)
        answers[stored_as] = driver.generate([ids], 16)
        runner.close()
    assert np.abs(scores["gguf"] - expected).max() < MAX_ERROR
    for stored_as in FORMATS:
        np.testing.assert_array_equal(scores[stored_as], scores["gguf"], stored_as)
        assert answers[stored_as] == answers["gguf"]


def _scores(driver: Driver, ids: list[int]) -> NDArray[np.float32]:
    """Log-probability of every prompt token but the first, in one step."""
    request = driver.request(ids)
    result = driver.step([driver.prefill(request, score=True)], top_logprobs=0)
    driver.release(request)
    assert result.logprobs is not None
    return result.logprobs[:-1]


def write_smollm2_folder(folder: Path) -> Path:
    """The default model's tensors as a HuggingFace folder, all float32."""
    source = open_checkpoint(default_model_path())
    assert isinstance(source, GgufCheckpoint)
    config = source.config
    raw_config = {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_q_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.mlp_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.context_len,
        "tie_word_embeddings": config.tie_embeddings,
    }
    weights = {name: source.tensor(name) for name in source.names()}
    return write_folder(folder, TinyModel(raw_config, weights))


@pytest.fixture
def smollm2_args(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """What makes a server find the default model in the format that the test names."""
    path = tmp_path / "SmolLM2"
    if request.param == "orbax":
        convert(open_checkpoint(default_model_path()), path, "float32")
        yield ["--model-path", str(path)]
    else:
        write_smollm2_folder(path)
        yield ["--model-path", str(path), "--tokenizer-path", str(default_model_path())]
    shutil.rmtree(path)  # Half a gigabyte.


@pytest.fixture
def server_of_another_format(smollm2_args: list[str], tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path / "log", *SERVER_ARGS, *smollm2_args)
    yield server
    server.close()


@pytest.mark.parametrize(
    "smollm2_args",
    ["orbax", pytest.param("safetensors", marks=pytest.mark.long)],
    indirect=True,
)
async def test_smollm2_answers_the_same(server_of_another_format: ServerProcess):
    """As the GGUF file does; the converted folder brings tokenizer and chat template along."""
    server = server_of_another_format
    server.wait_until_ready()
    async with HttpClient(server.url) as client:
        assert "Paris" in await client.capital()
        for golden in GOLDENS[:3]:
            body = {"prompt": golden["prompt_ids"], "max_tokens": 32, "temperature": 0}
            status, reply = await client.post("/v1/completions", body | {"ignore_eos": True})
            assert status == 200, reply
            assert reply["choices"][0]["text"] == CONTROL_TOKEN.sub("", golden["text"])
    server.signal(signal.SIGTERM)
    assert server.wait_for_exit() == 0
    # Orbax is silent, too.
    assert not re.findall("ERROR|WARNING|absl|orbax", server.log)
