"""Mixtures of experts whose experts take 8 and 4 bits, against models rounded by hand."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from numpy.typing import NDArray

from jaxsgl.loading.orbax_weights import restore_weights, save_weights
from jaxsgl.models.attention import AttentionKind, ForwardBatch
from jaxsgl.models.model_config import Experts, LatentAttention, ModelConfig
from jaxsgl.models.quantization.codes import Scheme
from jaxsgl.models.quantization.family import named_weights, online_head, quantized_family
from jaxsgl.models.quantization.matrix import QuantizedMatrix
from jaxsgl.models.registry import model_class
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.weights import Model, device_bytes, load_weights
from tests.models.tiny import RandomModel, one_device_mesh, prompt_batch, tiny_config

SCHEMES: tuple[Scheme, ...] = ("int8", "fp8", "int4")
EXPERTS = Experts(num_experts=4, num_chosen=2, mlp_size=32, normalised=True)
SHARED = Experts(4, 2, 32, normalised=False, shared_mlp_size=64, dense_layers=(0,))
CONFIGS = {
    "mixtral": tiny_config(
        architecture="mixtral", experts=EXPERTS, tie_embeddings=False, num_layers=1
    ),
    "qwen3_moe": tiny_config(architecture="qwen3_moe", experts=EXPERTS, qk_norm=True, num_layers=1),
    "deepseek_v2": tiny_config(
        architecture="deepseek_v2",
        experts=SHARED,
        latent=LatentAttention(kv_rank=32, nope_dim=16, rope_dim=8, value_dim=16),
        num_kv_heads=1,
        head_dim=40,
        rotary_dim=8,
        attention_scale=24**-0.5,
        tie_embeddings=False,
    ),
}
NUM_TOKENS = 12


def rounded(matrix: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float32]:
    """What a matrix [out, in] is stored as, row by row."""
    peak = np.abs(matrix).max(1, keepdims=True)
    match scheme:
        case "int8":
            scale = peak / np.float32(127)
            return np.round(matrix / scale) * scale
        case "fp8":
            scales = [peak / np.float32(448) * np.float32(2 ** (step / 16)) for step in range(16)]
            tried = [
                (matrix / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
                for scale in scales
            ]
            best = np.argmin([np.square(each - matrix).sum(1) for each in tried], axis=0)
            return np.stack(tried)[best, np.arange(len(matrix))]
        case "int4":
            group = next(size for size in (128, 64, 32) if matrix.shape[1] % size == 0)
            groups = matrix.reshape(-1, group)
            at = np.abs(groups).argmax(1)[:, None]
            scale = (np.take_along_axis(groups, at, 1) / -8).astype(np.float16).astype(np.float32)
            return (np.clip(np.round(groups / scale), -8, 7) * scale).reshape(matrix.shape)


ExpertsAre = Literal["rounded", "rounded across", "plain"]


class Rounded:
    """A random model whose matrices were rounded. For controls, those of experts as if each input
    had its scale, or not."""

    def __init__(
        self, config: ModelConfig, scheme: Scheme, experts_are: ExpertsAre = "rounded"
    ) -> None:
        self._model = RandomModel(config)
        self._scheme: Scheme = scheme
        self._experts_are = experts_are

    def tensor(self, name: str) -> NDArray[np.float32]:
        values = self._model.tensor(name)
        if name == "lm_head.weight":
            return rounded(values, online_head(self._scheme))
        if ".experts." in name and self._experts_are != "rounded":
            across = self._experts_are == "rounded across"
            return rounded(values.T, self._scheme).T if across else values
        is_quantised = "_proj" in name or ".experts." in name
        if is_quantised and "kv_b_proj" not in name:
            return rounded(values, self._scheme)
        return values


def load(config: ModelConfig, tensors: Any, scheme: Scheme | None, **options: Any) -> Model:
    layout = resolve_layout(config, one_device_mesh())
    head = None if scheme is None else online_head(scheme)
    family = quantized_family(model_class(config.architecture), scheme, head, **options)
    return load_weights(family, config, tensors, layout, jnp.float32)


def logits(model: Model, config: ModelConfig) -> NDArray[np.float32]:
    """Of a prompt."""
    num = NUM_TOKENS
    batch = prompt_batch(num)
    pages = jnp.zeros((config.num_layers * 2, num, config.num_kv_heads, config.head_dim))
    out, _ = _forward(model, batch, (pages,) * config.cache_arrays, AttentionKind("mixed", "xla"))
    return np.asarray(out)


@functools.partial(jax.jit, static_argnames="kind")
def _forward(model: Model, batch: ForwardBatch, pages: Any, kind: AttentionKind) -> Any:
    return model(batch, pages, kind)


QUICK = (("mixtral", "int4"), ("qwen3_moe", "fp8"))


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        pytest.param(name, scheme, marks=[pytest.mark.long] * ((name, scheme) not in QUICK))
        for name in CONFIGS
        for scheme in SCHEMES
    ],
)
def test_a_model_computes_with_rounded_experts(name: str, scheme: Scheme) -> None:
    config = CONFIGS[name]
    found = logits(load(config, RandomModel(config), scheme), config)
    expected = logits(load(config, Rounded(config, scheme), None), config)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    controls: tuple[ExpertsAre, ...] = ("rounded across", "plain")
    for control in controls:
        wrong = logits(load(config, Rounded(config, scheme, control), None), config)
        assert np.abs(found - wrong).max() > 1e-3, control


@pytest.mark.parametrize("scheme", SCHEMES)
def test_experts_take_the_bytes_promised(scheme: Scheme) -> None:
    config = CONFIGS["mixtral"]
    layout = resolve_layout(config, one_device_mesh())
    model = load(config, RandomModel(config), scheme)
    parts: dict[str, list[jax.Array]] = {
        name: jax.tree.leaves(weight.get_value()) for name, weight in named_weights(model)
    }
    held = {name: sum(part.nbytes for part in arrays) for name, arrays in parts.items()}
    assert device_bytes(model, layout) == sum(held.values())
    num_values = 4 * 64 * 32
    if scheme == "int4":
        gate_up, down = num_values + 2 * (2 * num_values) // 64, num_values // 2 + num_values // 16
    else:
        gate_up, down = 2 * num_values + 4 * 4 * 2 * 32, num_values + 4 * 4 * 64
    assert held["layers.0.feed_forward.gate_up"] == gate_up
    assert held["layers.0.feed_forward.down"] == down
    plain = load(config, RandomModel(config), scheme, with_experts=False)
    saved = 4 * 3 * num_values - gate_up - down
    assert device_bytes(plain, layout) - device_bytes(model, layout) == saved


def test_routers_stay_as_they_are() -> None:
    model = load(CONFIGS["deepseek_v2"], RandomModel(CONFIGS["deepseek_v2"]), "int8")
    kept = {
        name for name, weight in named_weights(model)
        if not isinstance(weight.get_value(), QuantizedMatrix) and "feed_forward" in name
    }  # fmt: skip
    assert kept == {"layers.1.feed_forward.router"}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("axis", "mesh_axis"), [("experts", "ep"), ("mlp", "tp")])
def test_one_device_of_two_counts_its_part(scheme: Scheme, axis: str, mesh_axis: str) -> None:
    config = CONFIGS["mixtral"]
    mesh: Any = AbstractMesh((2,), (mesh_axis,))
    layout = resolve_layout(config, mesh)
    family = quantized_family(model_class("mixtral"), scheme, scheme, max_group=32)
    if scheme == "int4" and axis == "mlp":
        with pytest.raises(ValueError, match="32 in 2 parts"):
            family(config, layout, jnp.float32)
        return
    weights = dict(named_weights(family(config, layout, jnp.float32)))
    matrix: Any = weights["layers.0.feed_forward.gate_up"].get_value()
    per_scale = {"int8": (1, 4 / 64), "fp8": (1, 4 / 64), "int4": (0.5, 2 / 32)}[scheme]
    assert matrix.num_bytes == 4 * 64 * 64 / 2 * sum(per_scale)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_orbax_checkpoint_gives_the_same(scheme: Scheme, tmp_path: Path) -> None:
    config = CONFIGS["qwen3_moe"]
    layout = resolve_layout(config, one_device_mesh())
    family = model_class(config.architecture)
    save_weights(tmp_path / "weights", family, config, RandomModel(config), jnp.float32)
    packed = quantized_family(family, scheme, None)
    restored = restore_weights(tmp_path / "weights", packed, config, layout, jnp.float32)
    loaded = load_weights(packed, config, RandomModel(config), layout, jnp.float32)
    for (_, one), (_, other) in zip(named_weights(restored), named_weights(loaded), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.get_value(), other.get_value())
