"""Weights on their way to an Orbax checkpoint and from there to a mesh."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from numpy.typing import NDArray

from jaxsgl.loading import orbax_weights
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.model_tensors import expected_shapes
from jaxsgl.loading.orbax_checkpoint import FORMAT_VERSION
from jaxsgl.loading.orbax_weights import restore_weights, save_weights
from jaxsgl.models.llama import Llama
from jaxsgl.models.quantization.family import named_weights, quantized_family
from jaxsgl.models.sharding import resolve_layout
from tests.loading.orbax_mesh_child import SHAPES
from tests.models.tiny import RandomModel, one_device_mesh, tiny_config

CONFIG = tiny_config()
NUMBERED = tiny_config(num_q_heads=8, attention_bias=True, tie_embeddings=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "weights"
    save_weights(path, Llama, CONFIG, RandomModel(CONFIG), jnp.float32)
    return path


def restore_with_orbax_alone(path: Path) -> dict[str, NDArray[np.float32]]:
    with ocp.PyTreeCheckpointer() as checkpointer:
        names = checkpointer.metadata(path).item_metadata.tree
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        return checkpointer.restore(path, restore_args=as_numpy)


def test_any_mesh_restores_what_the_source_would_give(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.loading.orbax_mesh_child", str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert child.returncode == 0, child.stderr
    assert sorted(child.stdout.splitlines()) == sorted(
        f"{shape} tp={tp} {dtype}"
        for shape in SHAPES
        for tp in (1, 2, 4)
        for dtype in ("float32", "bfloat16")
    )


class Numbered:
    """Every value of every tensor is another whole number."""

    def tensor(self, name: str) -> NDArray[np.float32]:
        shapes = expected_shapes(NUMBERED)
        sizes = np.cumsum([0, *(math.prod(shape) for shape in shapes.values())])
        first = sizes[list(shapes).index(name)]
        shape = shapes[name]
        return np.arange(first, first + math.prod(shape), dtype=np.float32).reshape(shape)


def test_the_layout_on_disk_is_that_of_the_format_s_version(tmp_path: Path) -> None:
    """Fails when models keep their weights otherwise than before: what was converted earlier would
    be read wrongly or not at all, so that FORMAT_VERSION has to grow along with this checksum."""
    save_weights(tmp_path / "weights", Llama, NUMBERED, Numbered(), jnp.float32)
    arrays = restore_with_orbax_alone(tmp_path / "weights")
    checksum = 0
    for name, values in sorted(arrays.items()):
        checksum = zlib.crc32(f"{name}{values.shape}".encode() + values.tobytes(), checksum)
    assert (FORMAT_VERSION, checksum) == (4, 1541974195)


def test_the_largest_weights_are_restored_first(saved: Path) -> None:
    reports = [0]
    layout = resolve_layout(CONFIG, one_device_mesh())
    restore_weights(
        saved, Llama, CONFIG, layout, jnp.float32, lambda done, total: reports.append(done)
    )
    sizes = np.diff(reports).tolist()
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 3


@dataclasses.dataclass
class Calls:
    """What Orbax was asked for: names in each call, and threads."""

    names: list[list[str]] = dataclasses.field(default_factory=list)
    threads: set[threading.Thread] = dataclasses.field(default_factory=set)
    unreadable: str = ""
    """A weight for which a call fails."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls, restore = Calls(), ocp.Checkpointer.restore

    def recorded(checkpointer: ocp.Checkpointer, path: Path, wanted: Any) -> Any:
        calls.names.append(list(wanted.item))
        calls.threads.add(threading.current_thread())
        if calls.unreadable in wanted.item:
            raise ValueError("a chunk is missing")
        return restore(checkpointer, path, wanted)

    monkeypatch.setattr(ocp.Checkpointer, "restore", recorded)
    return calls


def restore(path: Path, family: Any = Llama, dtype: Any = jnp.float32) -> Any:
    return restore_weights(path, family, CONFIG, resolve_layout(CONFIG, one_device_mesh()), dtype)


def test_weights_are_restored_together_as_far_as_memory_allows(saved: Path, calls: Calls) -> None:
    model = restore(saved, dtype=jnp.bfloat16)
    sizes = {name: math.prod(weight.shape) for name, weight in named_weights(model)}
    assert sorted(itertools.chain(*calls.names)) == sorted(sizes)
    assert len(calls.names) < len(sizes)
    # In the order that they were asked for; two calls may overlap.
    for batch in calls.names:
        of_batch = [sizes[name] for name in batch]
        assert of_batch == sorted(of_batch, reverse=True)
        # Two batches in bfloat16 against the first weight in float32, twice.
        assert 2 * 2 * sum(of_batch) <= 2 * 4 * of_batch[0]


def test_large_weights_are_restored_one_by_one(
    saved: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orbax_weights, "BATCH_BYTES", 1)
    restore(saved)
    assert all(len(batch) == 1 for batch in calls.names)


def test_what_is_to_be_quantised_is_restored_alone_and_not_ahead(saved: Path, calls: Calls) -> None:
    restore(saved, quantized_family(Llama, "int8", None), jnp.bfloat16)
    quantised = [batch for batch in calls.names if any("layers" in name for name in batch)]
    assert len(quantised) == 4 * CONFIG.num_layers
    assert all(len(batch) == 1 for batch in quantised)
    assert calls.threads == {threading.current_thread()}


def test_a_weight_that_cannot_be_read_is_named_and_nothing_left_running(
    saved: Path, calls: Calls
) -> None:
    calls.unreadable = "layers.1.attention.out"
    message = f"^{saved}: cannot read layers.1.attention.out: a chunk is missing$"
    with pytest.raises(CheckpointError, match=message):
        restore(saved, dtype=jnp.bfloat16)
    assert any(len(batch) > 1 and calls.unreadable in batch for batch in calls.names)
    assert not [each for each in threading.enumerate() if each.name.startswith("read-ahead")]


def test_orbax_alone_reads_what_was_saved(saved: Path) -> None:
    """No name, shape or value needs this project to be understood, and no mesh is part of it."""
    arrays = restore_with_orbax_alone(saved)
    assert not (saved / "_sharding").exists()
    embedding = RandomModel(CONFIG).tensor("model.embed_tokens.weight")
    np.testing.assert_array_equal(arrays["embedding"], embedding)
    down = RandomModel(CONFIG).tensor("model.layers.1.mlp.down_proj.weight")
    np.testing.assert_array_equal(arrays["layers.1.feed_forward.down"].reshape(down.shape), down)


def test_weights_are_written_in_pieces_that_can_be_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orbax_weights, "CHUNK_BYTES", 2048)
    save_weights(tmp_path / "weights", Llama, CONFIG, RandomModel(CONFIG), jnp.float32)
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(tmp_path / "weights").item_metadata.tree
    assert all(4 * math.prod(info.storage.chunk_shape) <= 2048 for info in found.values())
    embedding = RandomModel(CONFIG).tensor("model.embed_tokens.weight")
    np.testing.assert_array_equal(restore(tmp_path / "weights").embedding[...], embedding)


def test_progress_counts_bytes(saved: Path, tmp_path: Path) -> None:
    reports: dict[str, list[tuple[int, int]]] = {"saving": [], "restoring": []}
    save_weights(
        tmp_path / "weights",
        Llama,
        CONFIG,
        RandomModel(CONFIG),
        jnp.float32,
        lambda *report: reports["saving"].append(report),
    )
    layout = resolve_layout(CONFIG, one_device_mesh())
    restore_weights(
        saved,
        Llama,
        CONFIG,
        layout,
        jnp.float32,
        lambda *report: reports["restoring"].append(report),
    )
    total = 4 * sum(math.prod(shape) for shape in expected_shapes(CONFIG).values())
    for stage in reports.values():
        assert len(stage) > CONFIG.num_layers
        assert stage == sorted(stage) and stage[-1] == (total, total)


def test_orbax_is_silent(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("absl")
    level = logger.level
    layout = resolve_layout(CONFIG, one_device_mesh())
    with caplog.at_level(logging.DEBUG):
        restore_weights(saved, Llama, CONFIG, layout, jnp.float32)
    assert {record.name for record in caplog.records} <= {"asyncio", "jax"}
    assert logger.level == level


def test_a_damaged_list_of_weights_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save_weights(path, Llama, CONFIG, RandomModel(CONFIG), jnp.float32)
    (path / "_METADATA").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="cannot read the list of weights") as caught:
        restore_weights(path, Llama, CONFIG, resolve_layout(CONFIG, one_device_mesh()), jnp.float32)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("in the way")
    with pytest.raises(OSError, match="weights"):
        save_weights(tmp_path / "weights", Llama, CONFIG, RandomModel(CONFIG), jnp.float32)
