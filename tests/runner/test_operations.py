"""Weights replaced and memory released under a real runner."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsgl.interface import (
    EngineOperation,
    OperationFailed,
    OperationRefused,
    OperationReport,
    ReleaseMemory,
    ResumeMemory,
    UpdateWeights,
)
from jaxsgl.models.attention import KVPages
from jaxsgl.runner.device_memory import _HostWeight
from jaxsgl.runner.runner import ModelRunner
from tests.loading.tiny_models import tiny_model, write_folder
from tests.models.tiny import RandomModel, golden_model
from tests.runner.driver import Driver
from tests.runner.tiny_runner import FEWEST_BUCKETS, make_runner

GOLDEN = golden_model("tiny_llama")
PROMPT = GOLDEN.input_ids.tolist()


@pytest.fixture(scope="module", autouse=True)
def arrays_of_others() -> list[jax.Array]:
    """What earlier tests of this process left, kept so that it neither goes nor counts."""
    gc.collect()
    return jax.live_arrays()


@pytest.fixture(scope="module")
def live_bytes(arrays_of_others: list[jax.Array]) -> Callable[[], int]:
    others = {id(array) for array in arrays_of_others}

    def count() -> int:
        gc.collect()
        arrays = [array for array in jax.live_arrays() if id(array) not in others]
        return sum(array.nbytes for array in arrays if not array.is_deleted())

    return count


@pytest.fixture(scope="module")
def runner(arrays_of_others: list[jax.Array]) -> Iterator[ModelRunner]:
    runner = make_runner(RandomModel(GOLDEN.config, seed=1), buckets=FEWEST_BUCKETS)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def golden_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("golden"), tiny_model("tiny_llama"))


def operate(runner: ModelRunner, operation: EngineOperation) -> OperationReport:
    return runner.prepare(operation)()


def first_draw(runner: ModelRunner) -> tuple[int, float]:
    """The token that is most likely after the prompt, and its log-probability."""
    driver = Driver(runner)
    result = driver.step([driver.prefill(driver.request(PROMPT))], top_logprobs=0)
    assert result.logprobs is not None
    return int(result.token_ids[0]), float(result.logprobs[0])


def golden_draw() -> tuple[int, float]:
    last = GOLDEN.logits[-1].astype(np.float64)
    return int(last.argmax()), float(last.max() - np.log(np.exp(last).sum()))


def test_updated_weights_are_those_of_the_file(
    runner: ModelRunner, golden_folder: Path, live_bytes: Callable[[], int]
) -> None:
    assert first_draw(runner) != pytest.approx(golden_draw(), abs=1e-2)
    before = live_bytes()
    report = operate(runner, UpdateWeights(model_path=str(golden_folder)))
    assert report == OperationReport(weight_version="1", released=(), mesh="tp=1")
    assert live_bytes() == before
    assert first_draw(runner) == pytest.approx(golden_draw(), abs=1e-4)
    named = UpdateWeights(model_path=str(golden_folder), weight_version="mine")
    assert operate(runner, named).weight_version == "mine"


def test_other_models_are_refused(runner: ModelRunner, tmp_path: Path) -> None:
    drawn = first_draw(runner)
    other = write_folder(tmp_path / "other", tiny_model("tiny_qwen2"))
    with pytest.raises(OperationRefused, match="architecture is 'qwen2', the model served has"):
        runner.prepare(UpdateWeights(model_path=str(other)))
    with pytest.raises(OperationRefused, match="no such file"):
        runner.prepare(UpdateWeights(model_path=str(tmp_path / "none")))
    with pytest.raises(OperationRefused, match="load format"):
        runner.prepare(UpdateWeights(model_path=str(other), load_format="clay"))
    assert first_draw(runner) == drawn


def test_a_file_that_breaks_off_leaves_the_old_weights(
    runner: ModelRunner, tmp_path: Path, live_bytes: Callable[[], int]
) -> None:
    drawn, before = first_draw(runner), live_bytes()
    folder = write_folder(tmp_path / "torn", tiny_model("tiny_llama"))
    change = runner.prepare(UpdateWeights(model_path=str(folder)))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OperationFailed, match="cut short"):
        change()
    assert live_bytes() == before
    assert first_draw(runner) == drawn


def test_released_memory_is_free_and_comes_back(
    runner: ModelRunner, live_bytes: Callable[[], int]
) -> None:
    drawn, before = first_draw(runner), live_bytes()
    assert operate(runner, ReleaseMemory(parts=("kv_cache",))).released == ("kv_cache",)
    without_pages = live_bytes()
    assert operate(runner, ReleaseMemory()).released == ("kv_cache", "weights")
    assert live_bytes() < without_pages / 100 < before / 100
    assert operate(runner, ReleaseMemory()).released == ("kv_cache", "weights")
    assert operate(runner, ResumeMemory(parts=("weights",))).released == ("kv_cache",)
    assert operate(runner, ResumeMemory()).released == ()
    assert operate(runner, ResumeMemory()).released == ()
    assert live_bytes() == before
    assert first_draw(runner) == drawn


def test_updates_while_memory_is_released(runner: ModelRunner, golden_folder: Path) -> None:
    update = UpdateWeights(model_path=str(golden_folder))
    operate(runner, ReleaseMemory())
    with pytest.raises(OperationRefused, match="resume"):
        operate(runner, update)
    operate(runner, ResumeMemory(parts=("weights",)))
    assert operate(runner, update).released == ("kv_cache",)
    operate(runner, ResumeMemory())
    assert first_draw(runner) == pytest.approx(golden_draw(), abs=1e-4)


def test_pages_and_the_largest_weights_come_back_first(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[int] = []
    allocate_kv, on_devices = runner.programs.allocate_kv, _HostWeight.on_devices

    def watched_pages() -> KVPages:
        assert not order
        order.append(2**30)
        return allocate_kv()

    def watched_weight(weight: _HostWeight) -> jax.Array:
        order.append(math.prod(weight.shape))
        return on_devices(weight)

    drawn = first_draw(runner)
    operate(runner, ReleaseMemory())
    monkeypatch.setattr(runner.programs, "allocate_kv", watched_pages)
    monkeypatch.setattr(_HostWeight, "on_devices", watched_weight)
    operate(runner, ResumeMemory())
    assert order == sorted(order, reverse=True) and len(set(order)) > 3
    assert first_draw(runner) == drawn


def test_weights_make_way_for_pages_that_find_no_place(
    runner: ModelRunner,
    golden_folder: Path,
    live_bytes: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, allocate_kv = live_bytes(), runner.programs.allocate_kv
    attempts: list[int] = []

    def allocate() -> KVPages:
        attempts.append(live_bytes())
        if len(attempts) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return allocate_kv()

    monkeypatch.setattr(runner.programs, "allocate_kv", allocate)
    report = operate(runner, UpdateWeights(model_path=str(golden_folder)))
    assert report.released == ()
    weights_there, nothing_there = attempts
    assert nothing_there < weights_there / 100
    assert live_bytes() == before
    assert first_draw(runner) == pytest.approx(golden_draw(), abs=1e-4)


def test_none_of_this_compiles_a_step(runner: ModelRunner) -> None:
    """Asked before another runner of this process is built, whose programs would count too."""
    assert runner.recompiles == 0


def test_quantised_weights_are_replaced_by_quantised_ones(
    golden_folder: Path, live_bytes: Callable[[], int]
) -> None:
    random_model = RandomModel(GOLDEN.config, seed=1)
    runner = make_runner(random_model, buckets=FEWEST_BUCKETS, scheme="int8")
    drawn, before = first_draw(runner), live_bytes()
    operate(runner, ReleaseMemory())
    operate(runner, ResumeMemory())
    assert first_draw(runner) == drawn
    operate(runner, UpdateWeights(model_path=str(golden_folder)))
    assert live_bytes() == before
    token, logprob = first_draw(runner)
    expected_token, expected = golden_draw()
    assert token == expected_token and 1e-5 < abs(logprob - expected) < 0.05
    assert runner.recompiles == 0
    runner.close()
