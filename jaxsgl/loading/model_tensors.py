"""Which tensors a model of a given configuration has, and the check that a checkpoint has them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.models.model_config import Experts, LatentAttention, ModelConfig

MAX_LAYERS = 1024
MAX_SIZE = 2**24
"""Bound on every other size, far above that of any model: what is beyond it is a damaged header."""
MAX_EXPERTS = 2**17
"""In all layers together: each has tensors of its own in a folder's files."""


def check_config(config: ModelConfig, file: str) -> None:
    """Raise CheckpointError, which names `file`, unless the sizes are those of a possible model."""
    for field, limit in (
        ("vocab_size", MAX_SIZE),
        ("hidden_size", MAX_SIZE),
        ("num_layers", MAX_LAYERS),
        ("num_q_heads", MAX_SIZE),
        ("num_kv_heads", MAX_SIZE),
        ("head_dim", MAX_SIZE),
        ("mlp_size", MAX_SIZE),
        ("context_len", 2**31 - 1),
    ):
        value = getattr(config, field)
        if not 1 <= value <= limit:
            raise CheckpointError(f"{file}: {field} is {value}, not between 1 and {limit}")
    if config.num_q_heads % config.num_kv_heads:
        raise CheckpointError(
            f"{file}: {config.num_q_heads} query heads cannot share {config.num_kv_heads} kv heads"
        )
    if config.head_dim % 2 or (config.rotary_dim or 0) % 2:
        odd = "head_dim" if config.head_dim % 2 else "rotary_dim"
        raise CheckpointError(f"{file}: {odd} is {getattr(config, odd)}, which is odd")
    if not 2 <= (config.rotary_dim or 2) <= config.head_dim:
        raise CheckpointError(
            f"{file}: rotary_dim is {config.rotary_dim}, not between 2 and {config.head_dim}"
        )
    if config.window is not None and config.window < 1:
        raise CheckpointError(f"{file}: window is {config.window}, not positive")
    if not 0.0 < config.norm_eps < 1.0:
        raise CheckpointError(f"{file}: norm_eps is {config.norm_eps}, not between 0 and 1")
    if not (config.rope_theta > 0.0 and math.isfinite(config.rope_theta)):
        raise CheckpointError(f"{file}: rope_theta is {config.rope_theta}, not positive")
    _check_scaling(config, file)
    if config.experts is not None:
        _check_experts(config.experts, config.num_layers, file)
    if config.latent is not None:
        _check_latent(config.latent, file)


def _check_scaling(config: ModelConfig, file: str) -> None:
    scaling = config.rope_scaling
    if scaling is None:
        return
    if not 1 <= scaling.original_context_len < 2**31:
        raise CheckpointError(f"{file}: original_context_len is {scaling.original_context_len}")
    if not all(
        value > 0.0 and math.isfinite(value)
        for value in (scaling.factor, scaling.magnitude, scaling.beta_fast, scaling.beta_slow)
    ):
        raise CheckpointError(f"{file}: rope scaling has a value that is not positive: {scaling}")
    if (config.rotary_dim or config.head_dim) < 4 or config.rope_theta <= 1.0:
        raise CheckpointError(
            f"{file}: rope scaling needs rope_theta above 1 and 4 dimensions or more per head"
        )
    if scaling.kind == "longrope":
        num_factors = (config.rotary_dim or config.head_dim) // 2
        for name in ("short_factors", "long_factors"):
            factors = getattr(scaling, name)
            if len(factors) != num_factors or not all(0.0 < each < 1e30 for each in factors):
                raise CheckpointError(
                    f"{file}: {name} of longrope are not {num_factors} positive numbers"
                )


def _check_experts(experts: Experts, num_layers: int, file: str) -> None:
    for field, low, high in (
        ("num_experts", 1, MAX_EXPERTS // num_layers),
        ("num_chosen", 1, experts.num_experts),
        ("mlp_size", 1, MAX_SIZE),
        ("shared_mlp_size", 0, MAX_SIZE),
        ("num_groups", 1, experts.num_experts),
        ("num_chosen_groups", 1, experts.num_groups),
    ):
        value = getattr(experts, field)
        if not low <= value <= high:
            raise CheckpointError(
                f"{file}: {field} of the experts is {value}, not between {low} and {high}"
            )
    if experts.num_experts % experts.num_groups:
        raise CheckpointError(
            f"{file}: {experts.num_experts} experts cannot form {experts.num_groups} groups"
        )


def _check_latent(latent: LatentAttention, file: str) -> None:
    for field in ("kv_rank", "nope_dim", "rope_dim", "value_dim", "query_rank"):
        value = getattr(latent, field)
        if value is not None and not 1 <= value <= MAX_SIZE:
            raise CheckpointError(f"{file}: {field} is {value}, not between 1 and {MAX_SIZE}")


Shapes = dict[str, tuple[int, ...]]


def expected_shapes(config: ModelConfig) -> Shapes:
    """Return name and shape of every tensor of the model, named as HuggingFace names them in the
    architecture's checkpoints.

    A matrix is [out, in]; the embedding is [vocab, hidden].
    """
    hidden = config.hidden_size
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}"
        attention = _latent_shapes(config) if config.latent else _attention_shapes(config)
        shapes |= {f"{prefix}.self_attn.{name}": shape for name, shape in attention.items()}
        shapes |= {f"{prefix}.{name}.weight": (hidden,) for name in norm_names(config)}
        shapes |= {
            f"{prefix}.{name}": shape for name, shape in _feed_forward_shapes(config, index).items()
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def norm_names(config: ModelConfig) -> tuple[str, ...]:
    """The norms of a layer that are as wide as the hidden state."""
    names = ("input_layernorm", "post_attention_layernorm")
    if config.norms_after:
        return (*names, "pre_feedforward_layernorm", "post_feedforward_layernorm")
    return names


def _attention_shapes(config: ModelConfig) -> Shapes:
    hidden, head_dim = config.hidden_size, config.head_dim
    q_size, kv_size = config.num_q_heads * head_dim, config.num_kv_heads * head_dim
    sizes = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
    if config.merged_projections:
        sizes = {"qkv_proj": q_size + 2 * kv_size}
    shapes: Shapes = {f"{name}.weight": (size, hidden) for name, size in sizes.items()}
    if config.attention_bias:
        shapes |= {f"{name}.bias": (size,) for name, size in sizes.items()}
    if config.qk_norm:
        shapes |= {"q_norm.weight": (head_dim,), "k_norm.weight": (head_dim,)}
    return shapes | {"o_proj.weight": (hidden, q_size)}


def _latent_shapes(config: ModelConfig) -> Shapes:
    latent, hidden, heads = config.latent, config.hidden_size, config.num_q_heads
    assert latent is not None
    q_size = heads * (latent.nope_dim + latent.rope_dim)
    if latent.query_rank:
        shapes: Shapes = {
            "q_a_proj.weight": (latent.query_rank, hidden),
            "q_a_layernorm.weight": (latent.query_rank,),
            "q_b_proj.weight": (q_size, latent.query_rank),
        }
    else:
        shapes = {"q_proj.weight": (q_size, hidden)}
    return shapes | {
        "kv_a_proj_with_mqa.weight": (latent.kv_rank + latent.rope_dim, hidden),
        "kv_a_layernorm.weight": (latent.kv_rank,),
        "kv_b_proj.weight": (heads * (latent.nope_dim + latent.value_dim), latent.kv_rank),
        "o_proj.weight": (hidden, heads * latent.value_dim),
    }


def _feed_forward_shapes(config: ModelConfig, layer: int) -> Shapes:
    experts = config.experts
    if experts is None or not config.has_experts(layer):
        return _block_shapes("mlp", config.hidden_size, config.mlp_size, config.merged_projections)
    hidden = config.hidden_size
    block, names = "mlp", ("gate_proj", "up_proj", "down_proj")
    if config.architecture == "mixtral":
        block, names = "block_sparse_moe", ("w1", "w3", "w2")
    gate, up, down = names
    shapes: Shapes = {f"{block}.gate.weight": (experts.num_experts, hidden)}
    for index in range(experts.num_experts):
        prefix = f"{block}.experts.{index}"
        shapes[f"{prefix}.{gate}.weight"] = (experts.mlp_size, hidden)
        shapes[f"{prefix}.{up}.weight"] = (experts.mlp_size, hidden)
        shapes[f"{prefix}.{down}.weight"] = (hidden, experts.mlp_size)
    if experts.shared_mlp_size:
        shapes |= _block_shapes(f"{block}.shared_experts", hidden, experts.shared_mlp_size)
    return shapes


def _block_shapes(prefix: str, hidden: int, mlp_size: int, merged: bool = False) -> Shapes:
    shapes: Shapes = {f"{prefix}.down_proj.weight": (hidden, mlp_size)}
    if merged:
        return shapes | {f"{prefix}.gate_up_proj.weight": (2 * mlp_size, hidden)}
    for name in ("gate_proj", "up_proj"):
        shapes[f"{prefix}.{name}.weight"] = (mlp_size, hidden)
    return shapes


def check_tensors(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], file: str
) -> None:
    """Raise CheckpointError naming the first tensor that is missing, misshapen or unexpected."""
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{file}: tensor {name!a} is missing")
        if found[name] != shape:
            raise CheckpointError(f"{file}: {name!a} has shape {found[name]}, not {shape}")
    for name in found:
        if name not in expected:
            raise CheckpointError(f"{file}: tensor {name[:200]!a} is not one of this model's")
