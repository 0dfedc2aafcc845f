"""Weights of files of every type, as a server loads them: those of a load by way of float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.safetensors_checkpoint import SafetensorsCheckpoint
from jaxsgl.models.sharding import Layout, resolve_layout
from jaxsgl.models.weights import load_weights
from jaxsgl.runner.weight_source import choose_form
from tests.loading.family_files import write_folder
from tests.models.families import FAMILIES, family_model
from tests.models.tiny import one_device_mesh

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TYPES = {"bf16": BFLOAT16, "f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}


class ByWayOfFloat32:
    """A source that widens everything."""

    def __init__(self, checkpoint: SafetensorsCheckpoint) -> None:
        self._checkpoint = checkpoint

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self._checkpoint.tensor(name).astype(np.float32)


def stored(folder: Path, name: str, *types: np.dtype[Any]) -> SafetensorsCheckpoint:
    """A family's model whose tensors have those types in turn."""
    folder = write_folder(folder / "model", family_model(name))
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    # By another order than that of the names, in which types would go with kinds of weights.
    order = np.random.default_rng(0).permutation(sorted(tensors))
    save_file(
        {each: tensors[each].astype(types[at % len(types)]) for at, each in enumerate(order)}, file
    )
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, SafetensorsCheckpoint)
    return checkpoint


def assert_loads_the_same(
    checkpoint: SafetensorsCheckpoint, dtype: Any, quantization: str | None = None
) -> None:
    layout: Layout = resolve_layout(checkpoint.config, one_device_mesh())
    form = choose_form(quantization, checkpoint)
    loaded = form.load(checkpoint, layout, dtype)
    source = ByWayOfFloat32(checkpoint)
    expected = load_weights(form.family, checkpoint.config, source, layout, dtype)
    for one, other in zip(
        *(jax.tree.leaves(nnx.state(each)) for each in (loaded, expected)), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_bfloat16(tmp_path: Path, name: str) -> None:
    assert_loads_the_same(stored(tmp_path, name, BFLOAT16), jnp.bfloat16)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_in_every_other(tmp_path: Path, kind: str, dtype: str) -> None:
    assert_loads_the_same(stored(tmp_path, FAMILIES[0], TYPES[kind]), TYPES[dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["mistral", "mixtral"])
def test_types_mixed_within_a_weight(tmp_path: Path, name: str, dtype: str) -> None:
    assert_loads_the_same(stored(tmp_path, name, *TYPES.values()), TYPES[dtype])


@pytest.mark.parametrize("quantization", ["int8", "fp8", "int4"])
def test_what_is_quantised_is_quantised_from_the_same_values(
    tmp_path: Path, quantization: str
) -> None:
    assert_loads_the_same(stored(tmp_path, "mistral", BFLOAT16), jnp.bfloat16, quantization)


def test_how_many_bytes_values_take(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path, "mistral", BFLOAT16)
    assert [checkpoint.value_bytes(dtype) for dtype in TYPES.values()] == [2, 4, 4]
    (file,) = (tmp_path / "model").glob("*.safetensors")
    tensors = load_file(file)
    for wide, expected in (("model.norm.weight", 2), ("model.embed_tokens.weight", 4)):
        save_file(tensors | {wide: tensors[wide].astype(np.float32)}, file)
        checkpoint = open_checkpoint(tmp_path / "model")
        assert isinstance(checkpoint, SafetensorsCheckpoint)
        assert checkpoint.value_bytes(BFLOAT16) == expected


def test_nothing_is_widened_that_need_not_be(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path, "mistral", BFLOAT16)
    for name in checkpoint.names():
        assert checkpoint.tensor(name, BFLOAT16).dtype == BFLOAT16
        assert checkpoint.tensor(name).dtype == np.float32
