"""Mixtral 8x7B and 8x22B (arXiv:2401.04088)."""

from __future__ import annotations

from jax.typing import DTypeLike

from jaxsgl.models.experts import MixtureOfExperts
from jaxsgl.models.mistral import Mistral
from jaxsgl.models.weights import Block


class Mixtral(Mistral):
    """Mistral with a few large experts in every layer."""

    feed_forward_name = "block_sparse_moe"

    def make_feed_forward(self, index: int, dtype: DTypeLike) -> Block:
        return MixtureOfExperts(
            self.config, self.layout, dtype, router_name="gate", projections=("w1", "w3", "w2")
        )
