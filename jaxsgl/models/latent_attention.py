"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), computed on the latents.

Keys and values of every head are products of one latent vector per token. Instead of making them,
a query is multiplied by its head's key matrix, and what comes of attention by its value matrix:
the latent is the only key and the only value, and all that is cached (section 2.1.2).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxsgl.models.attention import AttentionKind, AttentionOptions, KVPages, attend
from jaxsgl.models.layers import linear, rms_norm
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.rope import rotate
from jaxsgl.models.self_attention import AttentionBlock, StepInputs
from jaxsgl.models.sharding import Layout
from jaxsgl.models.weights import (
    HostWeights,
    TensorSource,
    Values,
    abstract_weight,
    array_library,
)


class LatentSelfAttention(AttentionBlock):
    """A latent and the one rotated key of all heads lie behind one another in the cache."""

    def __init__(
        self, config: ModelConfig, layout: Layout, dtype: DTypeLike, options: AttentionOptions
    ) -> None:
        latent = config.latent
        assert latent is not None
        heads, embed, rank = config.num_q_heads, config.hidden_size, latent.kv_rank
        query_dim, query_in = latent.nope_dim + latent.rope_dim, latent.query_rank or embed
        self.config = config
        self.latent = latent
        self.layout = layout
        self.options = options
        if latent.query_rank:
            self.query_down = abstract_weight(
                (latent.query_rank, embed), (None, "embed"), dtype, num_outputs=1
            )
            self.query_norm = abstract_weight((latent.query_rank,), (None,), dtype)
        self.query = abstract_weight(
            (heads, query_dim, query_in), ("q_heads", None, None), dtype, num_outputs=2
        )
        self.kv_down = abstract_weight(
            (rank + latent.rope_dim, embed), (None, "embed"), dtype, num_outputs=1
        )
        self.kv_norm = abstract_weight((rank,), (None,), dtype)
        # One product per head, which `linear` does not do: kept as they are.
        self.key = abstract_weight((heads, latent.nope_dim, rank), ("q_heads", None, None), dtype)
        self.value = abstract_weight(
            (heads, latent.value_dim, rank), ("q_heads", None, None), dtype
        )
        self.out = abstract_weight(
            (embed, heads, latent.value_dim), ("embed", "q_heads", None), dtype, num_outputs=1
        )

    def __call__(
        self, x: jax.Array, inputs: StepInputs, pages: KVPages, kind: AttentionKind
    ) -> tuple[jax.Array, KVPages]:
        latent, eps = self.latent, self.config.norm_eps
        assert inputs.rope is not None
        queries = x
        if latent.query_rank:
            queries = rms_norm(linear(x, self.query_down[...]), self.query_norm[...], eps)
        q = self.layout.constrain(linear(queries, self.query[...]), None, "q_heads", None)
        unrotated, rotated = q[..., : latent.nope_dim], q[..., latent.nope_dim :]
        unrotated = jnp.einsum("thd,hdr->thr", unrotated, self.key[...])
        q = jnp.concatenate([unrotated, rotate(rotated, *inputs.rope)], axis=-1)

        cached = linear(x, self.kv_down[...])
        compressed = rms_norm(cached[:, : latent.kv_rank], self.kv_norm[...], eps)
        shared_key = rotate(cached[:, None, latent.kv_rank :], *inputs.rope)
        cached = jnp.concatenate([compressed[:, None], shared_key], axis=-1)
        # As many copies as devices: every head needs all of it.
        cached = jnp.repeat(cached, self.layout.kv_repeat, axis=1)

        return attend(
            q,
            (cached,),
            pages,
            inputs.first_page,
            inputs.batch,
            kind,
            self.layout,
            self.options,
        )

    def output(self, attended: jax.Array) -> jax.Array:
        latent = self.latent
        values = jnp.einsum("thr,hdr->thd", attended[..., : latent.kv_rank], self.value[...])
        return linear(values.reshape(len(values), -1), self.out[...])

    def host_weights(self, tensors: TensorSource, prefix: str) -> HostWeights:
        latent, heads = self.latent, self.config.num_q_heads

        def tensor(name: str) -> Values:
            return tensors.tensor(f"{prefix}.{name}.weight")

        query_name = "q_proj"
        if latent.query_rank:
            yield self.query_down, lambda: tensor("q_a_proj")
            yield self.query_norm, lambda: tensor("q_a_layernorm")
            query_name = "q_b_proj"

        def query() -> Values:
            return _halves_apart(tensor(query_name).reshape(self.query.shape), latent.nope_dim)

        def kv_down() -> Values:
            return _halves_apart(tensor("kv_a_proj_with_mqa")[None], latent.kv_rank)[0]

        def key_and_value() -> Values:
            return tensor("kv_b_proj").reshape(heads, -1, latent.kv_rank)

        yield self.query, query
        yield self.kv_down, kv_down
        yield self.kv_norm, lambda: tensor("kv_a_layernorm")
        # Read twice, so that only one of the two is held at a time.
        yield self.key, lambda: key_and_value()[:, : latent.nope_dim]
        yield self.value, lambda: key_and_value()[:, latent.nope_dim :]
        yield self.out, lambda: tensor("o_proj").reshape(self.out.shape)


def _halves_apart(weight: Values, start: int) -> Values:
    """Rows of [heads, rows, in] from `start` on, in the order that `rotate` wants them.

    In checkpoints neighbours are rotated together; here, rows of two halves.
    """
    kept, rotated = weight[:, :start], weight[:, start:]
    pairs = rotated.reshape(len(weight), -1, 2, weight.shape[-1]).swapaxes(1, 2)
    return array_library(weight).concatenate([kept, pairs.reshape(rotated.shape)], axis=1)
