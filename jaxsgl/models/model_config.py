"""What a checkpoint says about its model, whatever file format said it. Imports no jax."""

from __future__ import annotations

from dataclasses import dataclass

KNOWN_ARCHITECTURES = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "phi3",
    "smollm3",
    "deepseek_v2",
)
"""Architectures that `models.registry` has a module for."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Rotary frequencies changed for long contexts. `kind` names the formula in
    `models/rope.py`."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_len: int = 8192
    magnitude: float = 1.0
    """Of the rotated vectors, against 1: what longer contexts need to stay as sharp."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    short_factors: tuple[float, ...] = ()
    """Divisors of the frequencies, for contexts up to the original one."""
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Experts:
    """A feed-forward block that is many small ones, of which each token uses a few."""

    num_experts: int
    num_chosen: int
    """Experts per token."""
    mlp_size: int
    """Of each expert."""
    normalised: bool
    """Whether the weights of a token's experts are made to sum to 1."""
    scale: float = 1.0
    """The weights are multiplied by this."""
    shared_mlp_size: int = 0
    """Of the block that every token uses besides; 0 is none."""
    num_groups: int = 1
    num_chosen_groups: int = 1
    """Experts are chosen from the best groups only."""
    dense_layers: tuple[int, ...] = ()
    """Layers that have an ordinary block, of `ModelConfig.mlp_size`, instead."""


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention: keys and values of all heads come from one short vector."""

    kv_rank: int
    nope_dim: int
    """Part of a query and key that is not rotated."""
    rope_dim: int
    value_dim: int
    query_rank: int | None = None
    """Width that queries are squeezed through; None for none."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and constants of a decoder-only transformer."""

    architecture: str
    """A key of `models.registry`, for example "llama"."""
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    """As in the KV cache: 1 with latent attention."""
    head_dim: int
    """As in the KV cache: latent and rotated part together with latent attention."""
    mlp_size: int
    norm_eps: float
    rope_theta: float
    context_len: int
    """Longest sequence the model was made for."""
    tie_embeddings: bool
    attention_bias: bool = False
    """Biases on q, k and v."""
    rope_scaling: RopeScaling | None = None
    name: str = ""
    """What people call the model, taken from its file or folder."""
    rotary_dim: int | None = None
    """How many of a head's dimensions are rotated; None is all."""
    unrotated_layers: tuple[int, ...] = ()
    window: int | None = None
    """How far the layers of `windowed_layers` look back, in tokens, the token itself included."""
    windowed_layers: tuple[int, ...] = ()
    local_rope_theta: float | None = None
    """Of the windowed layers, without scaling; None is like the others."""
    qk_norm: bool = False
    """Queries and keys are normalised per head before they are rotated."""
    attention_scale: float | None = None
    """Of the scores; None is head_dim ** -0.5."""
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    activation: str = "silu"
    """Of the feed-forward gate: "silu" or "gelu_tanh"."""
    embedding_scale: float = 1.0
    norm_offset: float = 0.0
    """Added to the scales of all norms."""
    norms_after: bool = False
    """Attention and feed-forward are normalised after as well as before."""
    merged_projections: bool = False
    """The checkpoint stores q, k and v as one matrix, and gate and up."""
    experts: Experts | None = None
    latent: LatentAttention | None = None

    @property
    def cache_arrays(self) -> int:
        """Arrays per layer of the KV cache: keys and values, or latents alone."""
        return 1 if self.latent else 2

    def has_experts(self, layer: int) -> bool:
        return self.experts is not None and layer not in self.experts.dense_layers
