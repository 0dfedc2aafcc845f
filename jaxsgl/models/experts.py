"""A mixture of experts: each token goes through a few of many feed-forward blocks.

Tokens are sorted by expert, multiplied group by group, and put back. Devices that share the experts
out (logical axis "experts") each compute their own experts for all tokens, and add up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from jaxsgl.models.feed_forward import FeedForward
from jaxsgl.models.layers import ACTIVATIONS, linear
from jaxsgl.models.model_config import Experts, ModelConfig
from jaxsgl.models.quantization.matrix import QuantizedMatrix
from jaxsgl.models.sharding import Layout
from jaxsgl.models.weights import (
    Block,
    HostWeights,
    TensorSource,
    Values,
    abstract_weight,
    array_library,
    gathered,
)
from pallas_kernels.grouped_matmul.api import grouped_matmul

BLOCK_TOKENS = 256
"""Tokens computed at once, but on GPUs, which have a kernel. Where XLA has no grouped product it
makes one of all groups, masked, which takes memory in proportion to groups times rows."""


Parts = tuple[jax.Array, jax.Array | None, jax.Array | None]
"""The matrices of some experts [experts, in, out], and if they are quantised their scales and zeros
as `grouped_matmul` takes them."""


def route(logits: jax.Array, experts: Experts) -> tuple[jax.Array, jax.Array]:
    """The experts of each token [tokens, num_chosen], and their weights, of float32 router logits
    [tokens, num_experts]."""
    scores = jax.nn.softmax(logits, axis=-1)
    if experts.num_groups > 1:
        grouped = scores.reshape(len(scores), experts.num_groups, -1)
        _, best = jax.lax.top_k(grouped.max(-1), experts.num_chosen_groups)
        kept = jax.nn.one_hot(best, experts.num_groups, dtype=jnp.bool_).any(1)
        scores = jnp.where(kept[:, :, None], grouped, 0.0).reshape(scores.shape)
    weights, chosen = jax.lax.top_k(scores, experts.num_chosen)
    if experts.normalised:
        weights = weights / weights.sum(-1, keepdims=True)
    return chosen, weights * experts.scale


class MixtureOfExperts(Block):
    """Matrices of experts are [experts, in, out], as grouped products read them; gate and up are
    one, interleaved."""

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        dtype: DTypeLike,
        router_name: str = "gate",
        projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        """`router_name` and `projections` are parts of the names that the checkpoint uses."""
        experts = config.experts
        assert experts is not None
        num, embed, mlp = experts.num_experts, config.hidden_size, experts.mlp_size
        self.config = config
        self.experts = experts
        self.layout = layout
        self.names = (router_name, *projections)
        # Small, and what it decides is not to be rounded: never quantised.
        self.router = abstract_weight((num, embed), (None, "embed"), dtype)
        # Of three axes, as the products take it: TPUs cut tiles of the last two, so that an axis of
        # gate and up of its own would have to be copied away.
        self.gate_up = abstract_weight((num, embed, mlp * 2), ("experts", "embed", "mlp"), dtype)
        self.down = abstract_weight((num, mlp, embed), ("experts", "mlp", "embed"), dtype)
        if experts.shared_mlp_size:
            self.shared = FeedForward(config, layout, dtype, experts.shared_mlp_size)

    def __call__(self, x: jax.Array) -> jax.Array:
        logits = linear(x.astype(jnp.float32), self.router[...].astype(jnp.float32))
        chosen, weights = route(self.layout.constrain(logits), self.experts)
        out = self._chosen_experts(x, chosen, weights)
        if self.experts.shared_mlp_size:
            out = out + self.shared(x)
        return out

    def _chosen_experts(self, x: jax.Array, chosen: jax.Array, weights: jax.Array) -> jax.Array:
        layout = self.layout
        gate_up, down = _parts(self.gate_up[...]), _parts(self.down[...])
        compute = functools.partial(_own_experts, activation=self.config.activation)
        if layout.mesh.size == 1:
            return compute(x, chosen, weights, gate_up, down, expert_axes=(), sum_axes=())
        whole = PartitionSpec()
        expert_axes, mlp_axes = (_axes(layout.spec(axis)[0]) for axis in ("experts", "mlp"))
        run = functools.partial(
            compute, expert_axes=expert_axes, sum_axes=(*expert_axes, *mlp_axes)
        )
        return jax.shard_map(
            run,
            mesh=layout.mesh,
            # Embed is whole.
            in_specs=(
                whole, whole, whole,
                _specs(gate_up, layout, "experts", None, "mlp"),
                _specs(down, layout, "experts", "mlp", None),
            ),
            out_specs=whole,
            check_vma=False,
        )(x, chosen, weights, gate_up, down)  # fmt: skip

    def host_weights(self, tensors: TensorSource, prefix: str) -> HostWeights:
        router, gate, up, down = self.names

        def matrix(index: int, name: str) -> Values:
            """[in, out]"""
            return tensors.tensor(f"{prefix}.experts.{index}.{name}.weight").swapaxes(0, 1)

        def gate_and_up(index: int) -> Values:
            pair = [matrix(index, gate), matrix(index, up)]
            return array_library(pair[0]).stack(pair, axis=2).reshape(len(pair[0]), -1)

        num = self.experts.num_experts
        yield self.router, lambda: tensors.tensor(f"{prefix}.{router}.weight")
        yield self.gate_up, lambda: gathered(map(gate_and_up, range(num)), num)
        yield self.down, lambda: gathered((matrix(index, down) for index in range(num)), num)
        if self.experts.shared_mlp_size:
            yield from self.shared.host_weights(tensors, f"{prefix}.shared_experts")


def _parts(weight: jax.Array | QuantizedMatrix) -> Parts:
    if isinstance(weight, QuantizedMatrix):
        return weight.values, weight.scales, weight.zeros
    return weight, None, None


def _specs(parts: Parts, layout: Layout, *axes: str | None) -> tuple[PartitionSpec | None, ...]:
    """How each of the parts is spread whose matrices have these axes. Scales of all inputs lack
    theirs."""

    def spec(part: jax.Array | None) -> PartitionSpec | None:
        if part is None:
            return None
        return layout.spec(*axes) if part.ndim == 3 else layout.spec(axes[0], axes[2])

    return tuple(map(spec, parts))


def _axes(spec: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if spec is None:
        return ()
    return (spec,) if isinstance(spec, str) else spec


def _in_blocks(
    compute: Callable[..., jax.Array], x: jax.Array, chosen: jax.Array, weights: jax.Array
) -> jax.Array:
    """`compute` of x, chosen and weights, some tokens at a time."""
    num_tokens = len(x)
    if num_tokens <= BLOCK_TOKENS:
        return compute(x, chosen, weights)
    padding = -num_tokens % BLOCK_TOKENS

    def blocks(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, ((0, padding), (0, 0)))
        return padded.reshape(-1, BLOCK_TOKENS, array.shape[1])

    out = jax.lax.map(lambda block: compute(*block), tuple(map(blocks, (x, chosen, weights))))
    return out.reshape(-1, x.shape[1])[:num_tokens]


def _own_experts(
    x: jax.Array,
    chosen: jax.Array,
    weights: jax.Array,
    gate_up: Parts,
    down: Parts,
    *,
    activation: str,
    expert_axes: tuple[str, ...],
    sum_axes: tuple[str, ...],
) -> jax.Array:
    """The weighted sum of the chosen experts [tokens, embed], on a device that has some of them.

    x [tokens, embed]; chosen and weights [tokens, num_chosen], over all experts; matrices of
    gate_up [own experts, embed, own mlp * 2], of down [own experts, own mlp, embed].
    """
    compute = functools.partial(
        _some_tokens, gate_up=gate_up, down=down, activation=activation, expert_axes=expert_axes
    )
    by_kernel = functools.partial(compute, backend="triton")
    by_xla = functools.partial(_in_blocks, functools.partial(compute, backend="xla"))
    out = jax.lax.platform_dependent(x, chosen, weights, cuda=by_kernel, default=by_xla)
    if sum_axes:
        out = jax.lax.psum(out, sum_axes)
    return out.astype(x.dtype)


def _some_tokens(
    x: jax.Array,
    chosen: jax.Array,
    weights: jax.Array,
    *,
    gate_up: Parts,
    down: Parts,
    activation: str,
    expert_axes: tuple[str, ...],
    backend: str,
) -> jax.Array:
    """This device's part of `_own_experts`, in float32."""
    num_own, num_chosen = len(down[0]), chosen.shape[1]
    first = jax.lax.axis_index(expert_axes) * num_own if expert_axes else 0
    own = chosen.reshape(-1) - first
    # What other devices compute is sorted to the end, beyond all groups.
    own = jnp.where((own >= 0) & (own < num_own), own, num_own)
    order = jnp.argsort(own, stable=True)
    sizes = jnp.bincount(own, length=num_own + 1)[:num_own].astype(jnp.int32)

    def multiply(x: jax.Array, parts: Parts) -> jax.Array:
        matrices, scales, zeros = parts
        return grouped_matmul(x, matrices, sizes, scales, zeros, backend=backend)

    hidden = multiply(x[order // num_chosen], gate_up).reshape(len(order), -1, 2)
    hidden = ACTIVATIONS[activation](hidden[:, :, 0]) * hidden[:, :, 1]
    out = multiply(hidden, down).astype(jnp.float32)
    is_own = own[order] < num_own
    out = jnp.where(is_own[:, None], out * weights.reshape(-1)[order][:, None], 0.0)
    return out[jnp.argsort(order)].reshape(*chosen.shape, -1).sum(1)
