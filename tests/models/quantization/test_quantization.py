"""Matrices rounded to 8 and 4 bits, against NumPy, and models that are made of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxsgl.models.attention import AttentionKind, ForwardBatch
from jaxsgl.models.layers import linear
from jaxsgl.models.llama import Llama
from jaxsgl.models.quantization.codes import Scheme
from jaxsgl.models.quantization.family import named_weights, online_head, quantized_family
from jaxsgl.models.quantization.matrix import (
    QuantizationError,
    QuantizedMatrix,
    abstract_matrix,
)
from jaxsgl.models.quantization.product import MAX_KERNEL_TOKENS
from jaxsgl.models.quantization.rounding import quantize
from jaxsgl.models.sharding import Layout, resolve_layout
from jaxsgl.models.weights import Model, device_bytes, load_weights
from pallas_kernels.quant_matmul import reference
from tests.models.tiny import RandomModel, one_device_mesh, tiny_config

SCHEMES: tuple[Scheme, ...] = ("int8", "fp8", "int4")
LAYOUT = Layout(one_device_mesh(), (), 1, ())
SHAPE = (6, 4, 192)
CONFIG = tiny_config(tie_embeddings=False)


def random_matrix(seed: int = 0) -> NDArray[np.float32]:
    matrix = np.random.default_rng(seed).standard_normal(SHAPE, np.float32)
    matrix[2, 1] = 0
    return matrix


def quantized(values: NDArray[np.float32], scheme: Scheme) -> QuantizedMatrix:
    target = abstract_matrix(SHAPE, ("mlp", None, "embed"), 2, scheme, LAYOUT)
    return quantize(values, target)


def widened(matrix: QuantizedMatrix) -> NDArray[np.float64]:
    """What is stored, in the shape that it stands for."""
    parts = [None if p is None else np.asarray(p) for p in (matrix.values, matrix.scales)]
    zeros = None if matrix.zeros is None else np.asarray(matrix.zeros)
    assert parts[0] is not None and parts[1] is not None
    return reference.matrix(parts[0], parts[1], zeros).reshape(matrix.shape)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounding_errors_are_those_of_the_format(scheme: Scheme) -> None:
    values = random_matrix()
    matrix = quantized(values, scheme)
    error = np.abs(widened(matrix) - values)
    peak = np.abs(values).max(axis=-1, keepdims=True)
    match scheme:
        case "int8":
            allowed = peak / 127 / 2
        case "fp8":  # three bits behind the point, and steps of 2**-9 below 2**-6 of a scale
            allowed = np.maximum(np.abs(values) / 16, 2 * peak / 448 * 2.0**-10)
        case "int4":  # a value as large as the largest, of the other sign, is one step beyond
            groups = values.reshape(*SHAPE[:2], 3, 64)
            step = np.abs(groups).max(axis=-1, keepdims=True) / 8
            beyond = groups * -np.sign(groups[..., :1]) > 0
            allowed = np.where(beyond, step, step).reshape(SHAPE) * 1.001
            assert np.mean(error) < np.mean(step) / 3
    assert np.all(error <= allowed * (1 + 1e-5))
    assert not np.all(error <= allowed / 4)
    assert not np.any(widened(matrix)[2, 1])


def test_float8_scales_are_those_with_the_least_error() -> None:
    values = random_matrix()
    peak = np.abs(values).max(-1, keepdims=True)

    def error(factor: float) -> NDArray[np.float32]:
        scale = np.where(peak == 0, 1, peak) / 448 * np.float32(factor)
        rounded = (values / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
        return np.square(rounded - values).sum(-1)

    found = np.square(widened(quantized(values, "fp8")) - values).sum(-1)
    least = np.min([error(2 ** (step / 16)) for step in range(16)], axis=0)
    np.testing.assert_allclose(found, least, rtol=1e-3)
    assert found.sum() < 0.9 * error(1.0).sum()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sizes(scheme: Scheme) -> None:
    matrix = quantized(random_matrix(), scheme)
    assert matrix.shape == SHAPE
    parts = [part.nbytes for part in jax.tree.leaves(matrix)]
    assert matrix.num_bytes == sum(parts)
    num_values = int(np.prod(SHAPE))
    per_group = 2 * num_values // 64
    expected = num_values // 2 + per_group if scheme == "int4" else num_values + 4 * 24
    assert sum(parts) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tokens", [1, 5, 300])
def test_products_are_those_of_the_stored_values(scheme: Scheme, tokens: int) -> None:
    matrix = quantized(random_matrix(), scheme)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((tokens, SHAPE[-1]), np.float32)
    used = x.astype(np.float64)
    if scheme == "fp8" and tokens > MAX_KERNEL_TOKENS["fp8"]:
        # Near values of float8 on a scale of 1 / 32, and far from where roundings part.
        near = (32 * x).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        near[:, 0] = 448
        used = near.astype(np.float64) / 32
        nudge = 1 + rng.uniform(-1, 1, x.shape).astype(np.float32) / 64
        nudge[:, 0] = 1
        x = near * nudge / 32
    out = jax.jit(linear)(x, matrix)
    assert out.shape == (tokens, *SHAPE[:2]) and out.dtype == jnp.float32
    expected = np.einsum("ti,abi->tab", used, widened(matrix))
    np.testing.assert_allclose(out, expected, atol=1e-4)
    unrounded = np.einsum("ti,abi->tab", x, random_matrix())
    assert np.abs(out - unrounded).max() > 1e-3


def test_groups_follow_the_inputs_of_each_device() -> None:
    layout = dataclasses.replace(LAYOUT, rules=(("mlp", ("tp",)),))
    for num_inputs, group in ((256, 128), (192, 64), (96, 32)):
        matrix = abstract_matrix((8, num_inputs), ("embed", "mlp"), 1, "int4", layout)
        assert matrix.group == group
    with pytest.raises(QuantizationError, match="80 in 1 parts"):
        abstract_matrix((8, 80), ("embed", "mlp"), 1, "int4", layout)


# Whole models.


@functools.cache
def build(scheme: Scheme | None) -> Model:
    layout = resolve_layout(CONFIG, one_device_mesh())
    head = None if scheme is None else online_head(scheme)
    family = quantized_family(Llama, scheme, head)
    return load_weights(family, CONFIG, RandomModel(CONFIG), layout, jnp.float32)


def twin(model: Model) -> Model:
    """The same model with the stored values in plain matrices."""
    plain = build.__wrapped__(None)
    weights = dict(named_weights(plain))
    for name, weight in named_weights(model):
        value = weight.get_value()
        if isinstance(value, QuantizedMatrix):
            value = jnp.asarray(widened(value), jnp.float32)
        weights[name].set_value(value)
    return plain


def logits(model: Model, mode: Any) -> NDArray[np.float32]:
    """Of a few tokens: one row, or as many as there are tokens."""
    token_ids = np.arange(7, 19)
    num = len(token_ids)
    prefill = mode == "mixed"
    batch = ForwardBatch(
        token_ids=token_ids,
        positions=np.arange(num) if prefill else np.zeros(num),
        write_page=np.ones(num) if prefill else np.arange(1, num + 1),
        write_offset=np.arange(num) if prefill else np.zeros(num),
        q_start=np.array([0, num]) if prefill else np.arange(num + 1),
        kv_len=np.array([num]) if prefill else np.ones(num),
        page_table=np.array([[1]]) if prefill else np.arange(1, num + 1)[:, None],
        logit_idx=np.arange(num),
    )
    batch = jax.tree.map(lambda array: jnp.asarray(array, jnp.int32), batch)
    num_pages = CONFIG.num_layers * (num + 1)
    pages = jnp.zeros((num_pages, num, CONFIG.num_kv_heads, CONFIG.head_dim), jnp.float32)
    out, _ = _forward(model, batch, (pages, pages), AttentionKind(mode, "xla"))
    return np.asarray(out)


@functools.partial(jax.jit, static_argnames="kind")
def _forward(model: Model, batch: ForwardBatch, pages: Any, kind: AttentionKind) -> Any:
    return model(batch, pages, kind)


@pytest.mark.parametrize("mode", ["mixed", "decode"])
def test_a_model_computes_with_the_stored_values(mode: str) -> None:
    model = build("int4")
    schemes = {
        name.rpartition(".")[2]: weight.get_value().scheme
        for name, weight in named_weights(model)
        if isinstance(weight.get_value(), QuantizedMatrix)
    }
    assert schemes == {
        "qkv": "int4", "out": "int4", "gate_up": "int4", "down": "int4", "head": "int8"
    }  # fmt: skip
    found = logits(model, mode)
    np.testing.assert_allclose(found, logits(twin(model), mode), atol=1e-4)
    assert np.abs(found - logits(build(None), mode)).max() > 1e-2


def test_fewer_bits_are_further_from_the_original() -> None:
    original = logits(build(None), "mixed")
    errors = [np.abs(logits(build(each), "mixed") - original).mean() for each in SCHEMES]
    assert 0 < errors[0] < errors[1] < errors[2] < np.abs(original).mean() / 2


def test_memory_is_counted_as_it_is() -> None:
    layout = resolve_layout(CONFIG, one_device_mesh())
    for scheme in (None, *SCHEMES):
        model = build(scheme)
        held = sum(
            part.nbytes for _, weight in named_weights(model)
            for part in jax.tree.leaves(weight.get_value())
        )  # fmt: skip
        assert device_bytes(model, layout) == held


def test_one_device_of_several_counts_its_part() -> None:
    mesh = jax.sharding.AbstractMesh((2,), ("tp",))
    layout = Layout(mesh, (("mlp", ("tp",)),), 1, ())  # pyright: ignore[reportArgumentType]
    matrix = abstract_matrix((512, 2, 128), ("mlp", None, "embed"), 2, "int4", layout)
    assert matrix.num_bytes == 512 * (64 + 2)
