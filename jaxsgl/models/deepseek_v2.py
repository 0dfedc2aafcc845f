"""DeepSeek-V2 and V2-Lite (arXiv:2405.04434)."""

from __future__ import annotations

from jax.typing import DTypeLike

from jaxsgl.models.decoder import Decoder
from jaxsgl.models.experts import MixtureOfExperts
from jaxsgl.models.feed_forward import FeedForward
from jaxsgl.models.latent_attention import LatentSelfAttention
from jaxsgl.models.self_attention import AttentionBlock
from jaxsgl.models.weights import Block


class DeepseekV2(Decoder):
    """Latent attention, and experts beside a block that every token uses; the first layers are
    dense."""

    def make_attention(self, index: int, dtype: DTypeLike) -> AttentionBlock:
        return LatentSelfAttention(self.config, self.layout, dtype, self.attention_options(index))

    def make_feed_forward(self, index: int, dtype: DTypeLike) -> Block:
        if self.config.has_experts(index):
            return MixtureOfExperts(self.config, self.layout, dtype)
        return FeedForward(self.config, self.layout, dtype)
