"""Qwen 3, the mixtures of experts (arXiv:2505.09388)."""

from __future__ import annotations

from jax.typing import DTypeLike

from jaxsgl.models.experts import MixtureOfExperts
from jaxsgl.models.feed_forward import FeedForward
from jaxsgl.models.qwen3 import Qwen3
from jaxsgl.models.weights import Block


class Qwen3Moe(Qwen3):
    """Qwen 3 with many small experts, in all layers or in some."""

    def make_feed_forward(self, index: int, dtype: DTypeLike) -> Block:
        if self.config.has_experts(index):
            return MixtureOfExperts(self.config, self.layout, dtype)
        return FeedForward(self.config, self.layout, dtype)
