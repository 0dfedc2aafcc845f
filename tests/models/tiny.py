"""Small models for tests: the goldens with their expected logits, and random ones of any shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jaxsgl.loading.model_tensors import expected_shapes
from jaxsgl.models.attention import ForwardBatch
from jaxsgl.models.model_config import ModelConfig, RopeScaling

GOLDENS = Path(__file__).parent.parent / "goldens"
GOLDEN_MODELS = ("tiny_llama", "tiny_llama3_rope", "tiny_qwen2")


def one_device_mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]), ("tp",))


def prompt_batch(num: int) -> ForwardBatch:
    """A prompt of `num` tokens on page 1, of which all logits are wanted."""
    return ForwardBatch(
        token_ids=jnp.arange(7, 7 + num, dtype=jnp.int32),
        positions=jnp.arange(num, dtype=jnp.int32),
        write_page=jnp.ones(num, jnp.int32),
        write_offset=jnp.arange(num, dtype=jnp.int32),
        q_start=jnp.array([0, num], jnp.int32),
        kv_len=jnp.array([num], jnp.int32),
        page_table=jnp.ones((1, 1), jnp.int32),
        logit_idx=jnp.arange(num, dtype=jnp.int32),
    )


@dataclass(frozen=True)
class RandomModel:
    """A checkpoint of small random weights. Implements `Checkpoint` as far as runners read it."""

    config: ModelConfig
    seed: int = 0

    def tensor(self, name: str) -> NDArray[np.float32]:
        shapes = expected_shapes(self.config)
        draw = np.random.default_rng([self.seed, list(shapes).index(name)])
        values = draw.standard_normal(shapes[name], np.float32)
        return 1.0 + 0.1 * values if "norm" in name else 0.15 * values


@dataclass(frozen=True)
class GoldenModel:
    """A checkpoint whose logits after each of `input_ids` were computed by HuggingFace."""

    config: ModelConfig
    tensors: dict[str, NDArray[np.float32]]
    input_ids: NDArray[np.int32]
    logits: NDArray[np.float32]

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self.tensors[name].astype(np.float32)


def golden_model(name: str) -> GoldenModel:
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        tensors = dict(arrays)
    stored = json.loads(str(tensors.pop("config")))
    rope = stored["rope_parameters"]
    scaling = None
    if rope["rope_type"] == "llama3":
        scaling = RopeScaling(
            "llama3",
            rope["factor"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        )
    config = ModelConfig(
        architecture=stored["model_type"],
        vocab_size=stored["vocab_size"],
        hidden_size=stored["hidden_size"],
        num_layers=stored["num_hidden_layers"],
        num_q_heads=stored["num_attention_heads"],
        num_kv_heads=stored["num_key_value_heads"],
        head_dim=stored["head_dim"],
        mlp_size=stored["intermediate_size"],
        norm_eps=stored["rms_norm_eps"],
        rope_theta=rope["rope_theta"],
        context_len=stored["max_position_embeddings"],
        tie_embeddings=stored["tie_word_embeddings"],
        attention_bias=stored["model_type"] == "qwen2",
        rope_scaling=scaling,
    )
    return GoldenModel(config, tensors, tensors.pop("input_ids"), tensors.pop("logits"))


def tiny_config(**changes: object) -> ModelConfig:
    """The shape of the goldens, with changes."""
    sizes: dict[str, object] = {
        "architecture": "llama",
        "vocab_size": 128,
        "hidden_size": 64,
        "num_layers": 2,
        "num_q_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "mlp_size": 96,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "context_len": 256,
        "tie_embeddings": True,
    }
    return ModelConfig(**(sizes | changes))  # pyright: ignore[reportArgumentType]
