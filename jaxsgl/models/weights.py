"""From a checkpoint to a model on the mesh, one weight at a time.

A model is first built abstract: its weights are shapes with logical axes. Then each weight is read,
cast and placed in turn. A few are read ahead while others are placed, so that the host never holds
more than the largest of them and READ_AHEAD_BYTES.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Format
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from numpy.typing import NDArray

from jaxsgl.models.attention import AttentionKind, ForwardBatch, KVPages
from jaxsgl.models.dummy_tensors import DummyTensors
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.quantization.codes import CodeStack, scheme_of, widened
from jaxsgl.models.quantization.matrix import QuantizedMatrix
from jaxsgl.models.quantization.placing import placed_codes
from jaxsgl.models.quantization.rounding import quantize
from jaxsgl.models.read_ahead import Job, reading_ahead
from jaxsgl.models.sharding import GATHERED, Layout, placed

Values = NDArray[Any] | jax.Array
"""Values of a weight, on the host or on a device: float32, or of the model's type if the checkpoint
has them so. Models only move them, so that one rounding to the model's type is the last thing that
happens to them. Codes of a quantised matrix stand for values, too."""

READ_AHEAD_BYTES = 2**31
NUM_READERS = 4
FLOAT32_BYTES = np.dtype(np.float32).itemsize


class TensorSource(Protocol):
    """The part of a checkpoint that models read."""

    def tensor(self, name: str) -> Values:
        """A tensor by its name in HuggingFace's checkpoints; matrices are [out, in]."""
        ...


def array_library(values: Values) -> Any:
    """numpy or jax.numpy: the one whose functions keep these values where they are."""
    return jnp if isinstance(values, jax.Array) else np


HostWeights = Iterator[tuple[nnx.Param, Callable[[], Values]]]
"""Each weight of a model, and what reads its values; they may be read in any order."""


class Model(nnx.Module):
    """Base of every architecture: built abstract, then filled from a checkpoint."""

    def host_weights(self, tensors: TensorSource) -> HostWeights:
        """Every weight and what reads its values, from tensors in HuggingFace's naming."""
        raise NotImplementedError

    def hidden(
        self, batch: ForwardBatch, pages: KVPages, kind: AttentionKind
    ) -> tuple[jax.Array, KVPages]:
        """Hidden states of the wanted tokens after the last norm [logits, embed], and the pages
        with the new tokens."""
        raise NotImplementedError

    def logits(self, x: jax.Array) -> jax.Array:
        """Float32 [logits, vocab] of such hidden states."""
        raise NotImplementedError


class Block(nnx.Module):
    """A part of a layer that has weights of its own."""

    def host_weights(self, tensors: TensorSource, prefix: str) -> HostWeights:
        """Every weight and what reads its values; names in `tensors` begin with `prefix`."""
        raise NotImplementedError


ModelClass = Callable[[ModelConfig, Layout, DTypeLike], Model]


def abstract_weight(
    shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: DTypeLike, num_outputs: int = 0
) -> nnx.Param:
    """A weight that has no values yet; `axes` names each axis for the sharding rules, or is
    None. `num_outputs` is as in `Layout.placement`."""
    assert len(shape) == len(axes)
    values = jax.ShapeDtypeStruct(shape, dtype)
    return nnx.Param(values, logical_axes=axes, num_outputs=num_outputs)


def axes_of(weight: nnx.Variable) -> tuple[tuple[str | None, ...], int]:
    """The `axes` and `num_outputs` that a weight was declared with."""
    return weight.get_metadata("logical_axes"), weight.get_metadata("num_outputs")


def placement(weight: nnx.Param, layout: Layout) -> Format | NamedSharding:
    """Where `layout` wants a weight of a model."""
    return layout.placement(*axes_of(weight), weight.shape)


def at_hand[M: nnx.Module](module: M, x: jax.Array, layout: Layout) -> tuple[M, jax.Array]:
    """The module as its products take it, inside a compiled program: matrices whole along `embed`,
    but for quantised ones, whose products leave that to the partitioner.

    Returns x as well, which what is gathered waits for, so that devices hold one module at a time.
    """
    if layout.num_parts(GATHERED) == 1:
        return module, x
    graph, state = nnx.split(module)
    structure = jax.tree.structure(state)
    arrays, x = jax.lax.optimization_barrier((jax.tree.leaves(state), x))
    waiting, fetched = iter(arrays), []
    for weight in jax.tree.leaves(state, is_leaf=_is_variable):
        if isinstance(value := weight.get_value(), QuantizedMatrix):
            fetched += itertools.islice(waiting, len(jax.tree.leaves(value)))
        else:
            fetched.append(layout.at_hand(next(waiting), *axes_of(weight)))
    return nnx.merge(graph, jax.tree.unflatten(structure, fetched)), layout.constrain(x)


def as_declared(weight: nnx.Param, values: Values) -> Values:
    """Values as `set_values` takes them: of a weight that is no quantised matrix, in its type."""
    if isinstance(weight.get_value(), QuantizedMatrix):
        return values
    if scheme_of(values) is not None:
        values = widened(values)  # pyright: ignore[reportArgumentType]
    return values if values.dtype == weight.dtype else values.astype(weight.dtype)


def set_values(weight: nnx.Param, values: Values, layout: Layout) -> None:
    """Give a weight its values, on the mesh, in the form that it was declared or quantised in."""
    target = weight.get_value()
    if isinstance(target, QuantizedMatrix):
        place = quantize if scheme_of(values) is None else placed_codes
        weight.set_value(place(values, target))  # pyright: ignore[reportArgumentType]
        return
    # A backend may read the host's memory until the copy is done; then it can be reused.
    weight.set_value(placed(values, placement(weight, layout)).block_until_ready())


def _is_variable(node: object) -> bool:
    return isinstance(node, nnx.Variable)


def stacked(tensors: TensorSource, names: Sequence[str], axis: int = 0) -> Values:
    """Tensors of one shape in one, along a new axis."""
    values = [tensors.tensor(name) for name in names]
    return array_library(values[0]).stack(values, axis=axis)


def gathered(parts: Iterator[Values], num_parts: int) -> Any:
    """Parts of one shape in one, along a new first axis. On the host, each is gone before the next
    is made. Of codes of quantised matrices a CodeStack."""
    first = next(parts)
    if isinstance(first, jax.Array):
        return jnp.stack([first, *parts])
    make = np.empty if scheme_of(first) is None else CodeStack
    whole = make((num_parts, *first.shape), first.dtype)
    whole[0] = first
    del first
    for index, part in enumerate(parts, start=1):
        whole[index] = part
    return whole


def num_bytes(model: Model) -> int:
    """What the weights of a model, loaded or not, take in all, copies left aside."""
    weights = jax.tree.leaves(nnx.state(model), is_leaf=_is_variable)
    return sum(map(weight_bytes, weights))


def weight_bytes(weight: nnx.Variable) -> int:
    """What one weight takes, in whatever form it is kept."""
    leaves = jax.tree.leaves(weight.get_value())
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def device_bytes(model: Model, layout: Layout) -> int:
    """What the weights of a model, loaded or not, take on each device."""
    weights = jax.tree.leaves(nnx.state(model), is_leaf=_is_variable)
    return sum(_own_bytes(weight, layout) for weight in weights)


def _own_bytes(weight: nnx.Variable, layout: Layout) -> int:
    """What one weight takes on each device."""
    value = weight.get_value()
    if isinstance(value, QuantizedMatrix):
        return value.num_bytes
    sharding = layout.sharding(*weight.get_metadata("logical_axes"))
    return math.prod(sharding.shard_shape(weight.shape)) * weight.dtype.itemsize


def load_order(weight: nnx.Variable) -> int:
    """What to sort weights by, the largest first: what large temporaries leave behind is filled by
    the weights to come, and the last ones, in memory that is nearly full, need little."""
    return -math.prod(weight.shape)


def loading_bytes(model: Model, layout: Layout) -> int:
    """What loading takes for a moment on each device beyond what the weights of a model take once
    they are all there, at most: the values in float32, twice where tensors are merged or put into
    another order."""
    weights = jax.tree.leaves(nnx.state(model), is_leaf=_is_variable)
    num_placed, most = 0, 0
    for weight in sorted(weights, key=load_order):
        sharding = layout.sharding(*weight.get_metadata("logical_axes"))
        num_values = math.prod(sharding.shard_shape(weight.shape))
        num_placed += _own_bytes(weight, layout)
        most = max(most, num_placed + passing_bytes(num_values))
    return max(0, most - num_placed)


def passing_bytes(num_values: int, value_bytes: int = FLOAT32_BYTES) -> int:
    """What a weight takes at most on its way: twice, where tensors are merged or put into another
    order."""
    return 2 * num_values * value_bytes


def repeat_kv_heads(merged: Any, repeat: int) -> Any:
    """Copy each kv head `repeat` times and share its query heads out among the copies.

    From [kv_heads, group + 2, ...], a group being query heads followed by key and value, to
    [kv_heads * repeat, group / repeat + 2, ...]. `repeat` divides the group.
    """
    if repeat == 1:
        return merged
    kv_heads, width, *rest = merged.shape
    queries = merged[:, : width - 2].reshape(kv_heads * repeat, -1, *rest)
    key_and_value = merged[:, width - 2 :].repeat(repeat, axis=0)
    return array_library(merged).concatenate([queries, key_and_value], axis=1)


def group_kv_heads(merged: jax.Array, repeat: int) -> jax.Array:
    """What `repeat_kv_heads` was given to make this."""
    if repeat == 1:
        return merged
    copies, width, *rest = merged.shape
    queries = merged[:, : width - 2].reshape(copies // repeat, -1, *rest)
    return jnp.concatenate([queries, merged[::repeat, width - 2 :]], axis=1)


def load_weights(
    model_class: ModelClass,
    config: ModelConfig,
    tensors: TensorSource,
    layout: Layout,
    dtype: DTypeLike,
    progress: Callable[[int, int], None] = lambda done, total: None,
    value_bytes: int = FLOAT32_BYTES,
) -> Model:
    """A model with every weight on the mesh as `layout` says, in `dtype`. The largest come first.

    Other threads read ahead, unless `tensors` are made on devices, whose memory that would take.
    All have ended when this returns or raises.

    `progress` is called with bytes placed and bytes in all, as the model keeps them. `value_bytes`
    is what a value takes at most as `tensors` give it; how far is read ahead depends on it.
    Raises what `tensors` raises, and ValueError for a tensor of another shape than the model's.
    """
    model = model_class(config, layout, dtype)
    total, done = num_bytes(model), 0
    weights = sorted(model.host_weights(tensors), key=lambda each: load_order(each[0]))
    jobs = [
        Job(
            passing_bytes(math.prod(weight.shape), value_bytes),
            functools.partial(_read, weight, read),
        )
        for weight, read in weights
    ]
    max_bytes = 0 if isinstance(tensors, DummyTensors) else READ_AHEAD_BYTES
    with reading_ahead(jobs, max_bytes, NUM_READERS) as next_values:
        for weight, _ in weights:
            set_values(weight, next_values(), layout)
            done += weight_bytes(weight)
            progress(done, total)
    return model


def _read(weight: nnx.Param, read: Callable[[], Values]) -> Values:
    values = read()
    if values.shape != weight.shape:
        raise ValueError(f"a weight of shape {values.shape} where {weight.shape} was expected")
    return as_declared(weight, values)
