"""The configuration of a model from the metadata of its GGUF file, by llama.cpp's conventions.

What llama.cpp knows of a family without being told, such as which layers of Gemma have windows, is
known here, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.gguf_header import GgufHeader, MetadataValue
from jaxsgl.loading.hf_families import deepseek_attention
from jaxsgl.loading.model_tensors import check_config
from jaxsgl.loading.rope_config import yarn_growth
from jaxsgl.models.model_config import (
    KNOWN_ARCHITECTURES,
    Experts,
    LatentAttention,
    ModelConfig,
    RopeScaling,
)

ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "smollm3": "smollm3",
    "deepseek2": "deepseek_v2",
}
"""llama.cpp's names -> ours. Its "llama" is Mistral and Mixtral as well."""
PERMUTED_ROPE = frozenset({"llama", "mistral", "mixtral", "smollm3"})
"""Architectures, by our names, whose q and k rows llama.cpp reorders for an interleaved rotary
embedding."""
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
"""The models that scale scores by hidden size and heads instead of the size of a head."""

_QUANTISATION = re.compile(
    r"[.-](?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|NVFP4|BF16|FP?16|FP?32)$", re.IGNORECASE
)


def gguf_model_config(
    header: GgufHeader, path: Path, known_architectures: tuple[str, ...] = KNOWN_ARCHITECTURES
) -> ModelConfig:
    """Return the configuration that the header states. Raises CheckpointError."""
    reader = _Metadata(header, str(path), known_architectures)
    q_heads = reader.integer("attention.head_count")
    hidden = reader.integer("embedding_length")
    head_dim = reader.integer("attention.key_length", hidden // q_heads if q_heads > 0 else 0)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    config = ModelConfig(
        architecture=ARCHITECTURES[reader.architecture],
        vocab_size=reader.integer("vocab_size", len(tokens) if isinstance(tokens, list) else None),
        hidden_size=hidden,
        num_layers=reader.integer("block_count"),
        num_q_heads=q_heads,
        num_kv_heads=reader.integer("attention.head_count_kv", q_heads),
        head_dim=head_dim,
        mlp_size=reader.integer("feed_forward_length"),
        norm_eps=reader.real("attention.layer_norm_rms_epsilon"),
        rope_theta=reader.real("rope.freq_base", 10000.0),
        context_len=reader.integer("context_length"),
        tie_embeddings="output.weight" not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        rope_scaling=_rope_scaling(reader),
        name=_QUANTISATION.sub("", path.stem),
    )
    check_config(config, str(path))
    if reader.architecture != "deepseek2":
        config = _with_head_sizes(reader, config)
    refine = _REFINE.get(reader.architecture)
    if refine is not None:
        config = refine(reader, config)
    elif reader.integer("expert_count", 0):
        raise reader.error("expert_count", "is not 0, which is unsupported")
    if config.architecture not in known_architectures:
        raise reader.unknown(config.architecture)
    check_config(config, str(path))
    return config


def _with_head_sizes(reader: _Metadata, config: ModelConfig) -> ModelConfig:
    if reader.integer("attention.value_length", config.head_dim) != config.head_dim:
        raise reader.error(
            "attention.value_length",
            f"differs from the head dimension {config.head_dim}, which is unsupported",
        )
    rotary_dim = reader.integer("rope.dimension_count", config.head_dim)
    if rotary_dim == config.head_dim:
        return config
    if config.architecture in PERMUTED_ROPE:
        raise reader.error(
            "rope.dimension_count",
            f"differs from the head dimension {config.head_dim}, which is unsupported",
        )
    return replace(config, rotary_dim=rotary_dim)


def _rope_scaling(reader: _Metadata) -> RopeScaling | None:
    """All but what lies in tensors of its own."""
    kind = reader.text("rope.scaling.type", "none")
    if kind in ("none", "longrope"):
        return None
    factor = reader.real("rope.scaling.factor")
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind != "yarn":
        raise reader.error("rope.scaling.type", f"is {kind[:100]!a}, which is unsupported")
    magnitude = reader.real("rope.scaling.attn_factor", 1.0)
    if reader.architecture != "deepseek2":
        magnitude *= yarn_growth(factor)
    return RopeScaling(
        "yarn",
        factor,
        original_context_len=reader.integer("rope.scaling.original_context_length"),
        magnitude=magnitude,
        beta_fast=reader.real("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=reader.real("rope.scaling.yarn_beta_slow", 1.0),
    )


def _llama(reader: _Metadata, config: ModelConfig) -> ModelConfig:
    """Llama, Mistral or Mixtral. Converters leave the window of the first Mistrals out."""
    num_experts = reader.integer("expert_count", 0)
    window = reader.integer("attention.sliding_window", 0)
    if window:
        windowed = tuple(range(config.num_layers))
        config = replace(config, architecture="mistral", window=window, windowed_layers=windowed)
    if not num_experts:
        return config
    experts = Experts(
        num_experts=num_experts,
        num_chosen=reader.integer("expert_used_count"),
        mlp_size=reader.integer("expert_feed_forward_length", config.mlp_size),
        normalised=True,
    )
    return replace(config, architecture="mixtral", experts=experts)


def _qwen3(reader: _Metadata, config: ModelConfig) -> ModelConfig:
    return replace(config, qk_norm=True)


def _qwen3_moe(reader: _Metadata, config: ModelConfig) -> ModelConfig:
    experts = Experts(
        num_experts=reader.integer("expert_count"),
        num_chosen=reader.integer("expert_used_count"),
        mlp_size=reader.integer("expert_feed_forward_length"),
        normalised=True,
    )
    return replace(config, qk_norm=True, experts=experts)


def _gemma(reader: _Metadata, config: ModelConfig, period: int) -> ModelConfig:
    windowed = reader.windowed_layers(config.num_layers, period)
    scaled_by = config.head_dim
    if config.num_layers == GEMMA_27B_LAYERS[reader.architecture]:
        scaled_by = config.hidden_size // config.num_q_heads
    return replace(
        config,
        window=reader.integer("attention.sliding_window"),
        windowed_layers=windowed,
        attention_scale=scaled_by**-0.5,
        activation="gelu_tanh",
        embedding_scale=config.hidden_size**0.5,
        norm_offset=1.0,
        norms_after=True,
    )


def _gemma2(reader: _Metadata, config: ModelConfig) -> ModelConfig:
    return replace(
        _gemma(reader, config, period=2),
        attention_soft_cap=reader.real("attn_logit_softcapping", 50.0),
        logit_soft_cap=reader.real("final_logit_softcapping", 30.0),
    )


def _gemma3(reader: _Metadata, config: ModelConfig) -> ModelConfig:
    return replace(
        _gemma(reader, config, period=6),
        qk_norm=True,
        local_rope_theta=reader.real("rope.freq_base_swa", 10000.0),
    )


def _phi3(reader: _Metadata, config: ModelConfig) -> ModelConfig:
    window = reader.integer("attention.sliding_window", 0) or None
    windowed = tuple(range(config.num_layers)) if window else ()
    return replace(config, window=window, windowed_layers=windowed, merged_projections=True)


def _smollm3(reader: _Metadata, config: ModelConfig) -> ModelConfig:
    return replace(config, unrotated_layers=tuple(range(3, config.num_layers, 4)))


def _deepseek2(reader: _Metadata, config: ModelConfig) -> ModelConfig:
    if reader.integer("expert_gating_func", 1) != 1:
        raise reader.error("expert_gating_func", "is not 1, a softmax: others are unsupported")
    kv_rank = reader.integer("attention.kv_lora_rank")
    rope_dim = reader.integer("rope.dimension_count")
    # Newer files state what is cached, and the sizes of heads under names of their own.
    head_dim = reader.integer("attention.key_length_mla", config.head_dim)
    latent = LatentAttention(
        kv_rank=kv_rank,
        nope_dim=head_dim - rope_dim,
        rope_dim=rope_dim,
        value_dim=reader.integer(
            "attention.value_length_mla", reader.integer("attention.value_length", head_dim)
        ),
        query_rank=reader.integer("attention.q_lora_rank", 0) or None,
    )
    mlp_size = reader.integer("expert_feed_forward_length")
    num_dense = min(reader.integer("leading_dense_block_count", 0), config.num_layers)
    experts = Experts(
        num_experts=reader.integer("expert_count"),
        num_chosen=reader.integer("expert_used_count"),
        mlp_size=mlp_size,
        normalised=reader.flag("expert_weights_norm"),
        scale=reader.real("expert_weights_scale", 1.0) or 1.0,
        shared_mlp_size=mlp_size * reader.integer("expert_shared_count", 0),
        num_groups=reader.integer("expert_group_count", 1) or 1,
        num_chosen_groups=reader.integer("expert_group_used_count", 1) or 1,
        dense_layers=tuple(range(num_dense)),
    )
    growth_weight = 10.0 * reader.real("rope.scaling.yarn_log_multiplier", 0.0)
    return deepseek_attention(replace(config, experts=experts), latent, growth_weight)


_REFINE: Mapping[str, Callable[[_Metadata, ModelConfig], ModelConfig]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3_moe,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "smollm3": _smollm3,
    "deepseek2": _deepseek2,
}


class _Metadata:
    """The metadata under the architecture's prefix, with types checked."""

    def __init__(self, header: GgufHeader, file: str, known_architectures: tuple[str, ...]) -> None:
        self._header = header
        self._file = file
        self._known = known_architectures
        architecture = header.metadata.get("general.architecture")
        if (
            not isinstance(architecture, str)
            or ARCHITECTURES.get(architecture) not in known_architectures
        ):
            raise self.unknown(architecture)
        self.architecture = architecture

    def unknown(self, architecture: MetadataValue | None) -> CheckpointError:
        known = ", ".join(name for name, ours in ARCHITECTURES.items() if ours in self._known)
        return CheckpointError(
            f"{self._file}: architecture {str(architecture)[:100]!a} is unknown; known: {known}"
        )

    def error(self, key: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self._file}: {self.architecture}.{key} {why}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, "is not one integer")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if not isinstance(value, float):
            raise self.error(key, "is not a floating-point number")
        return value

    def flag(self, key: str) -> bool:
        value = self._value(key, False)
        if not isinstance(value, bool):
            raise self.error(key, "is not true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.error(key, "is not a string")
        return value

    def windowed_layers(self, num_layers: int, period: int) -> tuple[int, ...]:
        """Layers with a window: those that the file lists, or all but the last of each period."""
        key = "attention.sliding_window_pattern"
        value = self._value(key, period)
        if isinstance(value, np.ndarray) and value.shape == (num_layers,):
            return tuple(np.flatnonzero(value).tolist())
        period = self.integer(key, period)
        if period < 1:
            raise self.error(key, f"is {period}, not positive")
        return tuple(index for index in range(num_layers) if (index + 1) % period)

    def _value(self, key: str, default: MetadataValue | None) -> MetadataValue:
        value = self._header.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise self.error(key, "is missing")
        return value
