"""Grouped-query attention with rotary positions: the block that most families have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxsgl.models.attention import (
    AttentionKind,
    AttentionOptions,
    ForwardBatch,
    KVPages,
    attend,
)
from jaxsgl.models.layers import linear, rms_norm
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.rope import RopeTables, rotate
from jaxsgl.models.sharding import Layout
from jaxsgl.models.weights import (
    Block,
    HostWeights,
    TensorSource,
    Values,
    abstract_weight,
    array_library,
    repeat_kv_heads,
)


class HeadNorms(NamedTuple):
    """Scales [head_dim] of the norms of queries and keys."""

    q: jax.Array
    k: jax.Array


@dataclass(frozen=True)
class StepInputs:
    """What a layer needs besides hidden states and pages."""

    batch: ForwardBatch
    first_page: jax.Array
    """int32 []: where the layer's pages begin."""
    rope: RopeTables | None
    """None for a layer that rotates nothing."""
    head_norms: HeadNorms | None
    wanted: jax.Array | None
    """int32 [logits]: the tokens that the layer is computed for once all have attended; None for
    all."""


jax.tree_util.register_dataclass(StepInputs)


class AttentionBlock(Block):
    """In two parts, since not every token that attends is wanted afterwards."""

    def __call__(
        self, x: jax.Array, inputs: StepInputs, pages: KVPages, kind: AttentionKind
    ) -> tuple[jax.Array, KVPages]:
        """What each head makes of what it sees [tokens, q_heads, head_dim], and the pages with the
        new tokens."""
        raise NotImplementedError

    def output(self, attended: jax.Array) -> jax.Array:
        """Attention's output [tokens, embed], of what its heads make."""
        raise NotImplementedError


class SelfAttention(AttentionBlock):
    """Query, key and value are one matrix, grouped by kv head, so that it can be spread over
    devices along its first axis."""

    def __init__(
        self, config: ModelConfig, layout: Layout, dtype: DTypeLike, options: AttentionOptions
    ) -> None:
        kv_heads = config.num_kv_heads * layout.kv_repeat
        group = config.num_q_heads // kv_heads
        embed, head_dim = config.hidden_size, config.head_dim
        self.config = config
        self.layout = layout
        self.options = options
        self.qkv = abstract_weight(
            (kv_heads, group + 2, head_dim, embed),
            ("kv_heads", None, None, "embed"),
            dtype,
            num_outputs=3,
        )
        if config.attention_bias:
            self.qkv_bias = abstract_weight(
                (kv_heads, group + 2, head_dim), ("kv_heads", None, None), dtype
            )
        self.out = abstract_weight(
            (embed, config.num_q_heads, head_dim), ("embed", "q_heads", None), dtype, num_outputs=1
        )

    def __call__(
        self, x: jax.Array, inputs: StepInputs, pages: KVPages, kind: AttentionKind
    ) -> tuple[jax.Array, KVPages]:
        config, batch = self.config, inputs.batch
        width, head_dim = self.qkv.shape[1:3]
        qkv = linear(x, self.qkv[...])
        if config.attention_bias:
            qkv = qkv + self.qkv_bias[...]
        qkv = self.layout.constrain(qkv, None, "kv_heads", None, None)
        q = qkv[:, :, : width - 2].reshape(-1, config.num_q_heads, head_dim)
        k, v = qkv[:, :, width - 2], qkv[:, :, width - 1]
        if inputs.head_norms is not None:
            q = rms_norm(q, inputs.head_norms.q, config.norm_eps, config.norm_offset)
            k = rms_norm(k, inputs.head_norms.k, config.norm_eps, config.norm_offset)
        if inputs.rope is not None:
            q, k = rotate(q, *inputs.rope), rotate(k, *inputs.rope)
        return attend(q, (k, v), pages, inputs.first_page, batch, kind, self.layout, self.options)

    def output(self, attended: jax.Array) -> jax.Array:
        return linear(attended.reshape(len(attended), -1), self.out[...])

    def host_weights(self, tensors: TensorSource, prefix: str) -> HostWeights:
        yield self.qkv, lambda: self._merged_qkv(tensors, prefix, "weight")
        if self.config.attention_bias:
            yield self.qkv_bias, lambda: self._merged_qkv(tensors, prefix, "bias")
        out_name = f"{prefix}.o_proj.weight"
        yield self.out, lambda: tensors.tensor(out_name).reshape(self.out.shape)

    def _merged_qkv(self, tensors: TensorSource, prefix: str, kind: str) -> Values:
        """Grouped by kv head: [kv_heads, group + 2, head_dim, ...]."""
        kv_heads, head_dim = self.config.num_kv_heads, self.config.head_dim
        if self.config.merged_projections:
            q_size, kv_size = self.config.num_q_heads * head_dim, kv_heads * head_dim
            merged = tensors.tensor(f"{prefix}.qkv_proj.{kind}")
            parts = np.split(merged, [q_size, q_size + kv_size])
        else:
            parts = [tensors.tensor(f"{prefix}.{name}_proj.{kind}") for name in "qkv"]
        grouped = [part.reshape(kv_heads, -1, head_dim, *part.shape[1:]) for part in parts]
        merged = array_library(grouped[0]).concatenate(grouped, axis=1)
        return repeat_kv_heads(merged, self.layout.kv_repeat)
