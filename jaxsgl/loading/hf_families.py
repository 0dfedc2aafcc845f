"""What each family's config.json says beyond what all of them say, and what it leaves unsaid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from jaxsgl.loading.config_fields import ConfigFields, shown
from jaxsgl.loading.rope_config import yarn_growth
from jaxsgl.models.model_config import Experts, LatentAttention, ModelConfig

SLIDING, FULL = "sliding_attention", "full_attention"
SILU: Mapping[str, str] = {"silu": "silu"}
GELU: Mapping[str, str] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_tanh": "gelu_tanh"}

Refine = Callable[[ConfigFields, ModelConfig], ModelConfig]


@dataclass(frozen=True)
class Family:
    """How one family's config.json is read; `refine` adds what is its own."""

    refine: Refine
    activation: str = "silu"
    """Where config.json names none."""
    activation_key: str = "hidden_act"
    activations: Mapping[str, str] = field(default_factory=lambda: SILU)
    """config.json's names of activations -> ours."""
    tie_embeddings: bool = False
    """Where config.json does not say."""
    head_dim: int | None = None
    """Where config.json does not say; None is hidden size by heads."""
    rope_theta: float = 10000.0
    rope_layers: str | None = None
    """Kind of the layers that `ModelConfig.rope_theta` is for, where kinds differ."""


def _llama(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    return _windowed(fields, config, ())


def _mistral(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    window = fields.optional_integer("sliding_window")
    return replace(config, window=window, windowed_layers=_all_layers(config) if window else ())


def _mixtral(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    experts = Experts(
        num_experts=fields.integer("num_local_experts"),
        num_chosen=fields.integer("num_experts_per_tok"),
        mlp_size=config.mlp_size,
        normalised=True,
    )
    return replace(_mistral(fields, config), experts=experts)


def _qwen2(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    return replace(_upper_windows(fields, config), attention_bias=True)


def _qwen3(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    return replace(_upper_windows(fields, config), qk_norm=True)


def _qwen3_moe(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    step = fields.integer("decoder_sparse_step", 1)
    if step < 1:
        raise fields.error("decoder_sparse_step", f"is {step}, not positive")
    dense = set(fields.integers("mlp_only_layers") or ())
    dense |= {index for index in _all_layers(config) if (index + 1) % step}
    experts = Experts(
        # Transformers 5 writes it under Mixtral's name.
        num_experts=fields.integer("num_experts", fields.get("num_local_experts")),
        num_chosen=fields.integer("num_experts_per_tok"),
        mlp_size=fields.integer("moe_intermediate_size"),
        normalised=fields.flag("norm_topk_prob"),
        dense_layers=tuple(sorted(dense)),
    )
    windowed = _all_layers(config) if fields.flag("use_sliding_window") else ()
    return replace(_windowed(fields, config, windowed), qk_norm=True, experts=experts)


def _gemma2(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    alternating = tuple(index for index in _all_layers(config) if index % 2 == 0)
    config = _windowed(fields, _gemma(fields, config), alternating, default_window=4096)
    return replace(
        config,
        attention_soft_cap=fields.optional_positive("attn_logit_softcapping", 50.0),
        logit_soft_cap=fields.optional_positive("final_logit_softcapping", 30.0),
    )


def _gemma3(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    period = fields.integer("sliding_window_pattern", 6)
    if period < 1:
        raise fields.error("sliding_window_pattern", f"is {period}, not positive")
    local = tuple(index for index in _all_layers(config) if (index + 1) % period)
    config = _windowed(fields, _gemma(fields, config), local, default_window=4096)
    theta = fields.real("rope_local_base_freq", 10000.0)
    if isinstance(fields.get("rope_parameters", {}).get(SLIDING), dict):
        rope = fields.rope(SLIDING)
        if rope.get("rope_type", "default") != "default":
            raise rope.unsupported("rope_type", f"default, in layers of {SLIDING}")
        theta = rope.real("rope_theta", theta)
    return replace(
        config,
        qk_norm=True,
        local_rope_theta=theta,
        attention_soft_cap=fields.optional_positive("attn_logit_softcapping"),
        logit_soft_cap=fields.optional_positive("final_logit_softcapping"),
    )


def _gemma(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    return replace(
        config,
        attention_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5,
        embedding_scale=config.hidden_size**0.5,
        norm_offset=1.0,
        norms_after=True,
    )


def _phi3(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    return replace(_mistral(fields, config), merged_projections=True)


def _smollm3(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    rotates = fields.integers("no_rope_layers")
    if rotates is None:
        interval = fields.integer("no_rope_layer_interval", 4)
        if interval < 1:
            raise fields.error("no_rope_layer_interval", f"is {interval}, not positive")
        rotates = tuple((index + 1) % interval for index in _all_layers(config))
    if len(rotates) != config.num_layers:
        raise fields.error("no_rope_layers", f"has {len(rotates)} entries, not one per layer")
    unrotated = tuple(index for index, rotated in enumerate(rotates) if not rotated)
    windowed = unrotated if fields.flag("use_sliding_window") else ()
    return _windowed(fields, replace(config, unrotated_layers=unrotated), windowed)


def _deepseek_v2(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    latent = LatentAttention(
        kv_rank=fields.integer("kv_lora_rank"),
        nope_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        value_dim=fields.integer("v_head_dim"),
        query_rank=fields.optional_integer("q_lora_rank"),
    )
    method = fields.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise fields.unsupported("topk_method", "greedy, group_limited_greedy")
    if fields.get("scoring_func", "softmax") != "softmax":
        raise fields.unsupported("scoring_func", "softmax")
    if fields.flag("norm_topk_prob") or fields.integer("moe_layer_freq", 1) != 1:
        key = "norm_topk_prob" if fields.flag("norm_topk_prob") else "moe_layer_freq"
        raise fields.error(key, "is set, which is unsupported")
    mlp_size, grouped = fields.integer("moe_intermediate_size"), method != "greedy"
    experts = Experts(
        num_experts=fields.integer("n_routed_experts"),
        num_chosen=fields.integer("num_experts_per_tok"),
        mlp_size=mlp_size,
        normalised=False,
        scale=fields.positive("routed_scaling_factor", 1.0),
        shared_mlp_size=mlp_size * fields.integer("n_shared_experts", 0),
        num_groups=fields.integer("n_group") if grouped else 1,
        num_chosen_groups=fields.integer("topk_group") if grouped else 1,
        dense_layers=tuple(
            index
            for index in _all_layers(config)
            if index < fields.integer("first_k_dense_replace", 0)
        ),
    )
    return deepseek_attention(
        replace(config, experts=experts), latent, fields.rope().real("mscale_all_dim", 0.0)
    )


def deepseek_attention(
    config: ModelConfig, latent: LatentAttention, growth_weight: float
) -> ModelConfig:
    """The configuration with latent attention, whose scores YaRN sharpens with `growth_weight`."""
    scale = (latent.nope_dim + latent.rope_dim) ** -0.5 if latent.nope_dim > 0 else 1.0
    if config.rope_scaling is not None and config.rope_scaling.kind == "yarn":
        scale *= yarn_growth(config.rope_scaling.factor, growth_weight) ** 2
    return replace(
        config,
        latent=latent,
        num_kv_heads=1,
        head_dim=latent.kv_rank + latent.rope_dim,
        rotary_dim=latent.rope_dim,
        attention_scale=scale,
    )


def _all_layers(config: ModelConfig) -> tuple[int, ...]:
    return tuple(range(config.num_layers))


def _upper_windows(fields: ConfigFields, config: ModelConfig) -> ModelConfig:
    """Qwen's: a window in the layers from `max_window_layers` on, if at all."""
    windowed: tuple[int, ...] = ()
    if fields.flag("use_sliding_window"):
        windowed = _all_layers(config)[fields.integer("max_window_layers", 28) :]
    return _windowed(fields, config, windowed)


def _windowed(
    fields: ConfigFields,
    config: ModelConfig,
    layers: tuple[int, ...],
    default_window: int | None = None,
) -> ModelConfig:
    """With a window in the layers that `layer_types` names, or else in `layers`."""
    kinds = fields.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or any(
            not isinstance(kind, str) or kind not in (SLIDING, FULL) for kind in kinds
        ):
            raise fields.unsupported("layer_types", f"{FULL}, {SLIDING}")
        layers = tuple(index for index, kind in enumerate(kinds) if kind == SLIDING)
        if len(kinds) != config.num_layers:
            why = f"is {shown(kinds)}, with {len(kinds)} entries for {config.num_layers} layers"
            raise fields.error("layer_types", why)
    if not layers:
        return config
    window = fields.integer("sliding_window", default_window)
    return replace(config, window=window, windowed_layers=layers)


FAMILIES: Mapping[str, Family] = {
    "llama": Family(_llama),
    "mistral": Family(_mistral),
    "mixtral": Family(_mixtral),
    "qwen2": Family(_qwen2),
    "qwen3": Family(_qwen3, head_dim=128),
    "qwen3_moe": Family(_qwen3_moe),
    "gemma2": Family(
        _gemma2, "gelu_pytorch_tanh", "hidden_activation", GELU, tie_embeddings=True, head_dim=256
    ),
    "gemma3_text": Family(
        _gemma3,
        "gelu_pytorch_tanh",
        "hidden_activation",
        GELU,
        tie_embeddings=True,
        head_dim=256,
        rope_theta=1e6,
        rope_layers=FULL,
    ),
    "phi3": Family(_phi3),
    "smollm3": Family(_smollm3, tie_embeddings=True, rope_theta=2e6),
    "deepseek_v2": Family(_deepseek_v2),
}
"""By `model_type`."""
