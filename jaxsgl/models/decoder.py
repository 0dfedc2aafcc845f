"""What all families have in common: an embedding, layers one after another, an output head.

A family says how its layers attend, what follows attention, and where its norms are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from jaxsgl.models.attention import AttentionKind, AttentionOptions, ForwardBatch, KVPages
from jaxsgl.models.feed_forward import FeedForward
from jaxsgl.models.layers import linear, rms_norm, soft_cap
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.rope import RopeTables, rope_frequencies, rope_magnitude, rope_tables
from jaxsgl.models.self_attention import AttentionBlock, HeadNorms, SelfAttention, StepInputs
from jaxsgl.models.sharding import Layout
from jaxsgl.models.weights import (
    Block,
    HostWeights,
    Model,
    TensorSource,
    abstract_weight,
    at_hand,
    stacked,
)

Rotation = Literal["global", "local"] | None
"""Which rotary frequencies a layer uses, if any."""


class DecoderLayer(nnx.Module):
    """Pre-norm: each block sees a normalised copy and adds to the hidden state."""

    def __init__(
        self, config: ModelConfig, layout: Layout, attention: AttentionBlock, feed_forward: Block
    ) -> None:
        self.config = config
        self.layout = layout
        self.attention = attention
        self.feed_forward = feed_forward

    # Compiled as a function of its weights: traced once, called by every layer that is alike.
    @functools.partial(jax.jit, static_argnames="kind")
    def __call__(
        self,
        x: jax.Array,
        norm_scales: tuple[jax.Array, ...],
        inputs: StepInputs,
        pages: KVPages,
        kind: AttentionKind,
    ) -> tuple[jax.Array, KVPages]:
        """Hidden states after this layer [tokens, embed], or [logits, embed] of those that
        `inputs.wanted` names, and the pages with the new tokens."""
        before_attention, *other_scales = norm_scales
        attended, pages = self.attention(self.norm(x, before_attention), inputs, pages, kind)
        if inputs.wanted is not None:
            x, attended = _rows_of(x, inputs.wanted), _rows_of(attended, inputs.wanted)
        return self.after_attention(x, self.attention.output(attended), *other_scales), pages

    def after_attention(
        self, x: jax.Array, attended: jax.Array, before_feed_forward: jax.Array
    ) -> jax.Array:
        """Hidden states after this layer, of those before it and attention's output, all
        [tokens, embed], and the scales of the other norms."""
        x = x + self.layout.constrain(attended)
        fed = self.feed_forward(self.norm(x, before_feed_forward))
        return x + self.layout.constrain(fed)

    def norm(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        return rms_norm(x, scale, self.config.norm_eps, self.config.norm_offset)


class Decoder(Model):
    """A whole model. Built abstract; `load_weights` gives it values."""

    layer_class: ClassVar[type[DecoderLayer]] = DecoderLayer
    norm_names: ClassVar[tuple[str, ...]] = ("input_layernorm", "post_attention_layernorm")
    """The checkpoint's names of a layer's norms, in the order that the layer takes them."""
    feed_forward_name: ClassVar[str] = "mlp"

    def __init__(self, config: ModelConfig, layout: Layout, dtype: DTypeLike) -> None:
        embed, num_layers = config.hidden_size, config.num_layers
        self.config = config
        self.layout = layout
        self.embedding = abstract_weight((config.vocab_size, embed), ("vocab", "embed"), dtype)
        if not config.tie_embeddings:
            self.head = abstract_weight(
                (config.vocab_size, embed), ("vocab", "embed"), dtype, num_outputs=1
            )
        self.layers = nnx.List([self._make_layer(index, dtype) for index in range(num_layers)])
        # The norms of all layers, layer by layer, and the last one.
        num_norms = len(self.norm_names) * num_layers + 1
        self.norm_scales = abstract_weight((num_norms, embed), (None, None), dtype)
        if config.qk_norm:
            # Two per layer, of queries and of keys.
            self.head_norm_scales = abstract_weight(
                (2 * num_layers, config.head_dim), (None, None), dtype
            )

    def _make_layer(self, index: int, dtype: DTypeLike) -> DecoderLayer:
        return self.layer_class(
            self.config,
            self.layout,
            self.make_attention(index, dtype),
            self.make_feed_forward(index, dtype),
        )

    def make_attention(self, index: int, dtype: DTypeLike) -> AttentionBlock:
        return SelfAttention(self.config, self.layout, dtype, self.attention_options(index))

    def make_feed_forward(self, index: int, dtype: DTypeLike) -> Block:
        return FeedForward(self.config, self.layout, dtype)

    def attention_options(self, index: int) -> AttentionOptions:
        """How layer `index` attends."""
        config = self.config
        return AttentionOptions(
            scale=config.attention_scale or config.head_dim**-0.5,
            window=config.window if index in config.windowed_layers else None,
            soft_cap=config.attention_soft_cap,
        )

    def rotation(self, index: int) -> Rotation:
        """How layer `index` rotates queries and keys."""
        return None if index in self.config.unrotated_layers else "global"

    def __call__(
        self, batch: ForwardBatch, pages: KVPages, kind: AttentionKind
    ) -> tuple[jax.Array, KVPages]:
        """Logits of the wanted tokens, float32 [logits, vocab], and the pages with the new tokens.

        In "decode" every row has one token and wants its logits; `batch.logit_idx` may repeat the
        last row to be as long as draws are padded to.
        """
        x, pages = self.hidden(batch, pages, kind)
        return self.logits(x), pages

    def hidden(
        self, batch: ForwardBatch, pages: KVPages, kind: AttentionKind
    ) -> tuple[jax.Array, KVPages]:
        """Hidden states of the wanted tokens after the last norm [logits, embed], and the pages."""
        config, layout = self.config, self.layout
        x = layout.constrain(self._embedded(batch.token_ids))
        if config.embedding_scale != 1.0:
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        ropes = self._rope_tables(batch.positions)
        scales, num_norms = self.norm_scales[...], len(self.norm_names)
        pages_each = len(pages[0]) // config.num_layers
        few_wanted = len(batch.logit_idx) < len(x)
        for index, layer in enumerate(self.layers):
            layer_scales = tuple(scales[num_norms * index + i] for i in range(num_norms))
            first_page = jnp.asarray(index * pages_each, jnp.int32)
            rope, head_norms = ropes[self.rotation(index)], self._head_norms(index)
            # All tokens leave keys and values, but after the last attention a token's hidden state
            # matters to its own logits only.
            is_last = index == config.num_layers - 1
            wanted = batch.logit_idx if is_last and few_wanted else None
            inputs = StepInputs(batch, first_page, rope, head_norms, wanted)
            layer, x = at_hand(layer, x, layout)
            x, pages = layer(x, layer_scales, inputs, pages, kind)
        if not few_wanted and (kind.mode == "mixed" or len(batch.logit_idx) > len(x)):
            x = x[batch.logit_idx]
        return rms_norm(x, scales[-1], config.norm_eps, config.norm_offset), pages

    def logits(self, x: jax.Array) -> jax.Array:
        """Float32 [logits, vocab] of hidden states after the last norm."""
        head = self.embedding if self.config.tie_embeddings else self.head
        logits = linear(x, head[...], jnp.float32)
        # Logits are brought together, not the head: the partitioner alone might choose the latter.
        logits = self.layout.constrain(logits, None, "vocab")
        return self.layout.constrain(soft_cap(logits, self.config.logit_soft_cap))

    def _embedded(self, token_ids: jax.Array) -> jax.Array:
        """[tokens, embed].

        Where the vocabulary is spread, each device looks up what it has and the sums are taken: for
        a single token the partitioner alone would bring the whole table together.
        """
        spec = self.layout.spec("vocab", "embed")
        mesh_axes = spec[0]
        if mesh_axes is None:
            return _rows_of(self.embedding[...], token_ids)

        def look_up(table: jax.Array, token_ids: jax.Array) -> jax.Array:
            index = token_ids - jax.lax.axis_index(mesh_axes) * len(table)
            is_here = (index >= 0) & (index < len(table))
            rows = _rows_of(table, jnp.where(is_here, index, 0))
            return jax.lax.psum(jnp.where(is_here[:, None], rows, 0), mesh_axes)

        return jax.shard_map(
            look_up,
            mesh=self.layout.mesh,
            in_specs=(spec, PartitionSpec()),
            out_specs=PartitionSpec(None, spec[1]),
            check_vma=False,
        )(self.embedding[...], token_ids)

    def _rope_tables(self, positions: jax.Array) -> Mapping[Rotation, RopeTables | None]:
        """In the order of the layers: a set's differs between processes, and so would programs."""
        tables: dict[Rotation, RopeTables | None] = {}
        for index in range(self.config.num_layers):
            rotation = self.rotation(index)
            if rotation not in tables:
                tables[rotation] = self._rope_table(rotation, positions)
        return tables

    def _rope_table(self, rotation: Rotation, positions: jax.Array) -> RopeTables | None:
        if rotation is None:
            return None
        local = rotation == "local"
        frequencies = rope_frequencies(self.config, local=local)
        return rope_tables(frequencies, positions, rope_magnitude(self.config, local=local))

    def _head_norms(self, index: int) -> HeadNorms | None:
        if not self.config.qk_norm:
            return None
        scales = self.head_norm_scales[...]
        return HeadNorms(scales[2 * index], scales[2 * index + 1])

    def host_weights(self, tensors: TensorSource) -> HostWeights:
        prefixes = [f"model.layers.{index}" for index in range(self.config.num_layers)]
        yield self.embedding, lambda: tensors.tensor("model.embed_tokens.weight")
        for prefix, layer in zip(prefixes, self.layers, strict=True):
            yield from layer.attention.host_weights(tensors, f"{prefix}.self_attn")
            name = f"{prefix}.{self.feed_forward_name}"
            yield from layer.feed_forward.host_weights(tensors, name)
        norms = [f"{prefix}.{name}.weight" for prefix in prefixes for name in self.norm_names]
        yield self.norm_scales, lambda: stacked(tensors, [*norms, "model.norm.weight"])
        if self.config.qk_norm:
            names = [f"{prefix}.self_attn.{x}_norm.weight" for prefix in prefixes for x in "qk"]
            yield self.head_norm_scales, lambda: stacked(tensors, names)
        if not self.config.tie_embeddings:
            yield self.head, lambda: tensors.tensor("lm_head.weight")


def _rows_of(table: jax.Array, index: jax.Array) -> jax.Array:
    return table.at[index].get(mode="promise_in_bounds")
