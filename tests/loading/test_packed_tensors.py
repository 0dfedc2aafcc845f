"""Quantised checkpoints: their values, what is kept of them on a device, and what is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxsgl.config import ConfigError
from jaxsgl.interface import OperationRefused, UpdateWeights
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.models.quantization.codes import CODE_TYPES
from jaxsgl.models.quantization.family import named_weights
from jaxsgl.models.quantization.matrix import QuantizedMatrix, abstract_matrix
from jaxsgl.models.quantization.placing import placed_codes
from jaxsgl.models.sharding import Layout, resolve_layout
from jaxsgl.models.weights import gathered
from jaxsgl.runner.weight_source import OtherWeights, choose_form
from tests.loading.quantized_folders import SETTINGS, save, write_quantized
from tests.loading.tiny_models import TinyModel, tiny_model, write_folder
from tests.models.families import family_model
from tests.models.quantization.test_quantization import widened
from tests.models.tiny import one_device_mesh

KINDS = tuple(SETTINGS)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_format(kind: str, tmp_path: Path) -> None:
    matrices = write_quantized(tmp_path, kind)
    checkpoint = open_checkpoint(tmp_path)
    assert len(matrices) == 14
    for name, matrix in matrices.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), matrix)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_keeps_them_as_they_are(kind: str, tmp_path: Path) -> None:
    write_quantized(tmp_path, kind)
    checkpoint = open_checkpoint(tmp_path)
    layout = resolve_layout(checkpoint.config, one_device_mesh())
    kept = choose_form(None, checkpoint).load(checkpoint, layout, jnp.float32)
    plain = choose_form("none", checkpoint).load(checkpoint, layout, jnp.float32)
    weights = dict(named_weights(plain))
    num_kept = 0
    for name, weight in named_weights(kept):
        value, expected = weight.get_value(), np.asarray(weights[name].get_value())
        if isinstance(value, QuantizedMatrix):
            num_kept += 1
            held = sum(part.nbytes for part in jax.tree.leaves(value))
            assert held < expected.size * (0.75 if value.scheme == "int4" else 1.1)
            value = widened(value).astype(np.float32)
        np.testing.assert_array_equal(value, expected)
    assert num_kept == 8


def experts_of(tmp_path: Path, kind: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The matrices of all experts, as a device keeps a file's and as plain arrays."""
    golden = family_model("qwen3_moe")
    model = TinyModel(golden.raw_config, golden.weights())
    write_quantized(tmp_path, kind, model=model, **options)
    checkpoint = open_checkpoint(tmp_path)
    layout = resolve_layout(checkpoint.config, one_device_mesh())
    found = (
        {
            name: weight.get_value()
            for name, weight in named_weights(
                choose_form(form, checkpoint).load(checkpoint, layout, jnp.float32)
            )
            if ".feed_forward." in name and not name.endswith("router")
        }
        for form in (None, "none")
    )
    return next(found), next(found)


@pytest.mark.parametrize("kind", ["awq", "int8", "fp8"])
def test_experts_are_kept_as_they_are(kind: str, tmp_path: Path) -> None:
    kept, plain = experts_of(tmp_path, kind)
    assert len(kept) == 4
    for name, value in kept.items():
        np.testing.assert_array_equal(widened(value).astype(np.float32), plain[name])
        held = sum(part.nbytes for part in jax.tree.leaves(value))
        assert held < value.values.size * 1.25


def test_experts_of_two_kinds_are_widened(tmp_path: Path) -> None:
    kept, plain = experts_of(tmp_path, "int8", is_plain=lambda name: ".0.mlp.experts.3.up" in name)
    for name, value in kept.items():
        np.testing.assert_array_equal(value, plain[name])


def test_a_stack_of_codes_takes_little_memory() -> None:
    """While it is placed as well: a host has to hold all experts of a layer."""
    parts, inputs, outputs = 8, 256, 1024
    codes = np.zeros((inputs, outputs), CODE_TYPES["int4"])
    layout = Layout(one_device_mesh(), (), 1, ())
    axes = ("experts", "embed", "mlp")
    target = abstract_matrix((parts, inputs, outputs), axes, 0, "int4", layout, with_zeros=True)

    def peak(place: Callable[[], Any]) -> float:
        """Bytes for each value."""
        tracemalloc.start()
        place()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most / (parts * inputs * outputs)

    assert peak(lambda: placed_codes(gathered(iter([codes] * parts), parts), target)) < 2
    assert peak(lambda: placed_codes(np.stack([codes] * parts), target)) > 6


def test_forms_that_may_be_asked_for(tmp_path: Path) -> None:
    write_quantized(tmp_path / "awq", "awq")
    write_quantized(tmp_path / "fp8", "fp8")
    write_folder(tmp_path / "plain", tiny_model())
    awq, fp8, plain = (open_checkpoint(tmp_path / name) for name in ("awq", "fp8", "plain"))
    assert choose_form("awq", awq).stored == choose_form(None, awq).stored is not None
    assert choose_form("fp8", fp8).stored is not None
    assert choose_form("none", fp8).stored is None
    for asked, checkpoint, what in (
        ("gptq", awq, r"the checkpoint is awq \(int4\)"),
        ("int8", awq, r"the checkpoint is awq \(int4\)"),
        ("int8", fp8, r"the checkpoint is compressed-tensors \(fp8\)"),
        ("awq", plain, "the checkpoint is not quantised"),
    ):
        with pytest.raises(ConfigError, match=f"--quantization {asked}: {what}"):
            choose_form(asked, checkpoint)


def test_updates_are_of_the_same_form(tmp_path: Path) -> None:
    write_quantized(tmp_path / "served", "awq")
    write_quantized(tmp_path / "same", "awq", seed=1)
    write_quantized(tmp_path / "other", "gptq")
    served = open_checkpoint(tmp_path / "served")
    layout = resolve_layout(served.config, one_device_mesh())
    source = OtherWeights(
        served.config, choose_form(None, served), layout, jnp.dtype(jnp.float32), seed=0
    )
    assert len(source(UpdateWeights(model_path=str(tmp_path / "same")))()) > 8
    with pytest.raises(OperationRefused, match="not quantised as the model served"):
        source(UpdateWeights(model_path=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("kind", "settings", "problem"),
    [
        ("awq", {"bits": 3}, "bits is 3"),
        ("awq", {"version": "gemv"}, "version is 'gemv'"),
        ("gptq", {"group_size": 48}, "group_size is 48"),
        ("gptq", {"group_size": 64}, "no whole number of groups of 64|has shape"),
        ("gptq", {"quant_method": "quip"}, "'quip', which is unsupported; known: awq, gptq"),
        ("int8", {"format": "marlin-24"}, "format is 'marlin-24'"),
        ("int8", {"config_groups": {}}, "config_groups is not one group"),
    ],
)
def test_forms_that_are_refused(
    kind: str, settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    write_quantized(tmp_path, kind, **settings)
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "change", "problem"),
    [
        ("awq", "qzeros", None, "qzeros' is missing"),
        ("awq", "scales", lambda array: array[:1, :8], "has shape"),
        ("gptq", "qweight", lambda array: array.astype(np.int64), "has type I64, not I32"),
        ("gptq", "qweight", lambda array: array[0], "has shape"),
        ("int8", "weight_scale", lambda array: array[:3], "has shape"),
        ("int8", "weight", lambda array: array.view(np.uint8), "has type U8, not I8"),
    ],
)
def test_tensors_that_do_not_fit(
    kind: str, name: str, change: Any, problem: str, tmp_path: Path
) -> None:
    write_quantized(tmp_path, kind)
    tensors = load_file(tmp_path / "model.safetensors")
    full = f"model.layers.1.mlp.down_proj.{name}"
    tensors[full] = tensors[full] if change is None else change(tensors[full])
    if change is None:
        del tensors[full]
    save(tmp_path, tiny_model(), tensors, SETTINGS[kind])
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_checkpoint(tmp_path)
    assert "model.layers.1.mlp.down_proj" in str(caught.value)


def test_inputs_in_another_order_are_refused_when_they_are_read(tmp_path: Path) -> None:
    write_quantized(tmp_path, "gptq")
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.g_idx"] = tensors[f"{name}.g_idx"][::-1].copy()
    save(tmp_path, tiny_model(), tensors, SETTINGS["gptq"])
    with pytest.raises(CheckpointError, match="desc_act"):
        open_checkpoint(tmp_path).tensor(f"{name}.weight")
