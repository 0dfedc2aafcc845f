"""Which array axis is spread over which mesh axis: rules as data, resolved for one model and mesh.

Weights and activations name their axes logically. Rules (`sharding_rules`) map a logical axis to
mesh axes; an axis without a rule is whole on every device. Research swaps the rules and touches no
model code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental.layout import Format
from jax.experimental.layout import Layout as MemoryLayout
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.sharding_rules import MEGATRON, RulesError, ShardingRules

GATHERED = "embed"
"""The axis along which matrices are whole again where they are used: hidden states are whole on
every device, so it is memory that spreading it saves."""

MatrixOrder = Literal["as shaped", "inputs first", "in tiles"]
"""What a device reads fastest: GPU libraries a matrix with its input features as the slowest axis,
TPUs one whose last two axes, which tiles are cut of, are the largest output axis and the inputs."""


@dataclass(frozen=True)
class Layout:
    """Rules made definite for a model on a mesh: everything they name divides evenly. Hashable."""

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...]
    kv_repeat: int
    """Copies of each kv head, so that every device has whole heads to itself."""
    notes: tuple[str, ...]
    """What had to be replicated or repeated, for the start message."""
    matrix_order: MatrixOrder = "as shaped"
    """How matrices lie in memory. Shapes stay as they are."""

    def spec(self, *axes: str | None) -> PartitionSpec:
        """Partitioning of an array with these logical axes; None is an axis never spread."""
        mesh_axes_of = dict(self.rules)
        return PartitionSpec(
            *(_entry(mesh_axes_of.get(axis, ())) if axis else None for axis in axes)
        )

    def sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(*axes))

    def num_parts(self, axis: str) -> int:
        """How many parts a logical axis is spread in."""
        return math.prod(self.mesh.shape[each] for each in dict(self.rules).get(axis, ()))

    def placement(
        self, axes: tuple[str | None, ...], num_outputs: int, shape: tuple[int, ...]
    ) -> Format | NamedSharding:
        """Where a weight goes and how it lies there. Its first `num_outputs` axes are a matrix's
        output features; 0 is for what is no matrix."""
        sharding = self.sharding(*axes)
        if self.matrix_order == "as shaped" or num_outputs == 0:
            return sharding
        order = _inputs_first if self.matrix_order == "inputs first" else _in_tiles
        return Format(MemoryLayout(major_to_minor=order(num_outputs, shape)), sharding)

    def at_hand(
        self, weight: jax.Array, axes: tuple[str | None, ...], num_outputs: int
    ) -> jax.Array:
        """A weight as products take it, inside a compiled program: of a matrix, `embed` is
        whole."""
        if num_outputs == 0 or GATHERED not in axes or self.num_parts(GATHERED) == 1:
            return weight
        return self.constrain(weight, *(None if axis == GATHERED else axis for axis in axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Tell the partitioner how x lies on the mesh; with no axes named, whole on every
        device."""
        if self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(*axes))


def placed(values: Any, where: Format | Sharding) -> jax.Array:
    """An array of the host, or of one device, where a mesh wants it. On a mesh of several processes
    each has all values and puts its own devices' parts there: nothing passes between them."""
    sharding = where.sharding if isinstance(where, Format) else where
    assert sharding is not None
    if sharding.is_fully_addressable:
        return jax.device_put(values, where)
    whole = np.asarray(values)
    return jax.make_array_from_callback(whole.shape, where, whole.__getitem__)


def _inputs_first(num_outputs: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*range(num_outputs, len(shape)), *range(num_outputs))


def _in_tiles(num_outputs: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    largest = max(range(num_outputs), key=lambda axis: shape[axis])
    last = len(shape) - 1
    return (*(axis for axis in range(last) if axis != largest), largest, last)


def _entry(mesh_axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """As PartitionSpec writes it."""
    return (mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes) if mesh_axes else None


def resolve_layout(
    config: ModelConfig,
    mesh: Mesh,
    rules: ShardingRules = MEGATRON,
    *,
    matrix_order: MatrixOrder = "as shaped",
) -> Layout:
    """Fit the rules to the model and the mesh.

    What devices do not divide is replicated with a note if the rules adapt, and refused if not.
    Query and kv heads go together: kv heads are repeated where that gives every device whole
    groups. Raises RulesError, which names the axis and its size.
    """
    kept = dict(_on_mesh(rules, mesh))
    _check(kept, rules)
    notes: list[str] = []

    def give_up(axes: tuple[str, ...], what: str, why: str) -> None:
        if not rules.adapts:
            raise RulesError(f"sharding rules {rules.name!a}: {what}: {why}")
        for axis in axes:
            del kept[axis]
        notes.append(f"{what} replicated: {why}")

    def parts(axis: str) -> int:
        return math.prod(mesh.shape[each] for each in kept[axis])

    for axis, sizes in _sizes(config).items():
        uneven = [size for size in sizes if axis in kept and size % parts(axis)]
        if uneven:
            give_up((axis,), axis, f"{parts(axis)} devices do not divide {uneven[0]}")

    if config.experts is None:
        kept.pop("experts", None)

    kv_repeat = 1
    if "kv_heads" in kept:
        num_parts = parts("kv_heads")
        kv_repeat = num_parts // math.gcd(num_parts, config.num_kv_heads)
        if config.num_q_heads % (config.num_kv_heads * kv_repeat):
            kv_repeat = 1
            why = (
                f"{config.num_q_heads} query and {config.num_kv_heads} kv "
                f"heads do not spread over {num_parts} devices"
            )
            give_up(("q_heads", "kv_heads"), "attention", why)
        elif kv_repeat > 1:
            notes.append(f"each of {config.num_kv_heads} kv heads repeated {kv_repeat} times")
    used = {each for mesh_axes in kept.values() for each in mesh_axes}
    notes += [
        f"mesh axis {axis} repeats work: nothing is spread over its {size} devices"
        for axis, size in mesh.shape.items()
        if size > 1 and axis not in used
    ]
    return Layout(mesh, tuple(sorted(kept.items())), kv_repeat, tuple(sorted(notes)), matrix_order)


def _sizes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every size that weights have along an axis, heads aside."""
    sizes: dict[str, tuple[int, ...]] = {
        "vocab": (config.vocab_size,),
        "embed": (config.hidden_size,),
        "mlp": (config.mlp_size,),
        "experts": (),
    }
    experts = config.experts
    if experts is not None:
        shared = (experts.shared_mlp_size,) if experts.shared_mlp_size else ()
        dense = (config.mlp_size,) if experts.dense_layers else ()
        sizes["mlp"] = (experts.mlp_size, *shared, *dense)
        sizes["experts"] = (experts.num_experts,)
    return sizes


def _on_mesh(rules: ShardingRules, mesh: Mesh) -> list[tuple[str, tuple[str, ...]]]:
    """The rules, with no mesh axis that this mesh lacks."""
    kept: list[tuple[str, tuple[str, ...]]] = []
    for axis, mesh_axes in rules.axes:
        here = tuple(each for each in mesh_axes if each in mesh.shape)
        if len(here) < len(mesh_axes) and not rules.adapts:
            (lost, *_) = (each for each in mesh_axes if each not in mesh.shape)
            known = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
            raise RulesError(f"sharding rule maps {axis} to {lost!a}; the mesh has {known}")
        if here:
            kept.append((axis, here))
    return kept


def _check(kept: dict[str, tuple[str, ...]], rules: ShardingRules) -> None:
    """Raise RulesError for rules that no weight can follow."""
    if kept.get("q_heads") != kept.get("kv_heads"):
        raise RulesError("q_heads and kv_heads must be spread over the same mesh axis")
    for axis, mesh_axes in kept.items():
        both = set(mesh_axes) & set(kept.get(GATHERED, ()))
        if axis != GATHERED and both:
            raise RulesError(
                f"sharding rules {rules.name!a}: {axis} and {GATHERED} are axes of one weight and "
                f"cannot both be spread over {min(both)}"
            )
