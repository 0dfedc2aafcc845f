"""Gemma 2 (arXiv:2408.00118)."""

from __future__ import annotations

import jax

from jaxsgl.models.decoder import Decoder, DecoderLayer


class Gemma2Layer(DecoderLayer):
    """Each block's output is normalised, too, before it is added."""

    def after_attention(
        self,
        x: jax.Array,
        attended: jax.Array,
        after_attention: jax.Array,
        before_feed_forward: jax.Array,
        after_feed_forward: jax.Array,
    ) -> jax.Array:
        x = x + self.norm(self.layout.constrain(attended), after_attention)
        fed = self.feed_forward(self.norm(x, before_feed_forward))
        return x + self.norm(self.layout.constrain(fed), after_feed_forward)


class Gemma2(Decoder):
    """Every other layer looks back through a window; attention scores and logits are soft-capped.

    Embeddings are scaled by the root of the hidden size, norm scales are stored less 1, and the
    gate is a GELU. All of it is in the configuration.
    """

    layer_class = Gemma2Layer
    norm_names = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
