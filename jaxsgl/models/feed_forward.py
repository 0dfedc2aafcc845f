"""The gated feed-forward block (SwiGLU, arXiv:2002.05202, and its like)."""

from __future__ import annotations

import jax
from jax.typing import DTypeLike

from jaxsgl.models.layers import ACTIVATIONS, linear
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.sharding import Layout
from jaxsgl.models.weights import (
    Block,
    HostWeights,
    TensorSource,
    Values,
    abstract_weight,
    stacked,
)


class FeedForward(Block):
    """Gate and up are one matrix, interleaved, so that it can be spread along its first axis."""

    def __init__(
        self, config: ModelConfig, layout: Layout, dtype: DTypeLike, mlp_size: int | None = None
    ) -> None:
        """`mlp_size` is the configuration's own if None."""
        embed, mlp_size = config.hidden_size, mlp_size or config.mlp_size
        self.config = config
        self.layout = layout
        self.gate_up = abstract_weight(
            (mlp_size, 2, embed), ("mlp", None, "embed"), dtype, num_outputs=2
        )
        self.down = abstract_weight((embed, mlp_size), ("embed", "mlp"), dtype, num_outputs=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate_up = self.layout.constrain(linear(x, self.gate_up[...]), None, "mlp", None)
        hidden = ACTIVATIONS[self.config.activation](gate_up[:, :, 0]) * gate_up[:, :, 1]
        return linear(hidden, self.down[...])

    def host_weights(self, tensors: TensorSource, prefix: str) -> HostWeights:
        if self.config.merged_projections:
            yield self.gate_up, lambda: _halves(tensors.tensor(f"{prefix}.gate_up_proj.weight"))
        else:
            names = [f"{prefix}.{name}_proj.weight" for name in ("gate", "up")]
            yield self.gate_up, lambda: stacked(tensors, names, axis=1)
        yield self.down, lambda: tensors.tensor(f"{prefix}.down_proj.weight")


def _halves(merged: Values) -> Values:
    """Gate above up, interleaved: [mlp, 2, embed]."""
    return merged.reshape(2, -1, merged.shape[1]).swapaxes(0, 1)
