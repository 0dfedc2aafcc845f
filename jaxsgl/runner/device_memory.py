"""What a runner keeps on its devices: weights, KV pages and slot state. Each can be given up and
brought back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsgl.interface import MEMORY_PARTS, MemoryPart, OperationFailed, OperationRefused
from jaxsgl.models.attention import KVPages
from jaxsgl.models.weights import group_kv_heads, repeat_kv_heads
from jaxsgl.runner.part_times import PartTimes
from jaxsgl.runner.programs import Programs, Weights
from jaxsgl.runner.slot_state import SlotState

COMPILING = "compiling"
"""The name of this part of a move."""


class DeviceMemory:
    """The arrays that programs are called with. `kv` and `state` are donated: whoever runs a
    program puts its results in their place."""

    def __init__(self, weights: Weights, programs: Programs) -> None:
        self.weights = weights
        self.kv: KVPages
        self.state: SlotState
        self.programs = programs
        """Those that the arrays are laid out for."""
        self._on_host: list[_HostWeight] = []
        """Weights that were released."""
        self._released: set[MemoryPart] = set()
        self._allocate_kv()

    @property
    def released(self) -> tuple[MemoryPart, ...]:
        return tuple(part for part in MEMORY_PARTS if part in self._released)

    def clear(self) -> None:
        """Empty KV pages and slot state, whatever state they are in."""
        self._free_kv()
        self._allocate_kv()

    def close(self) -> None:
        """Give everything back."""
        _delete((self.weights, self.kv, self.state))

    def replace_weights(self, load: Callable[[], Weights]) -> None:
        """Make the weights that `load` brings the runner's, with empty KV pages.

        Both sets are on the devices for a moment: the pages make room for it. Raises
        OperationRefused while the weights are released, and OperationFailed when `load` fails, with
        the old weights in place.
        """
        if "weights" in self._released:
            raise OperationRefused("the weights are released; resume their memory first")
        self._free_kv()
        problem = None
        try:
            loaded = load()
        except Exception as error:
            # Not raised from here: its traceback holds what was loaded so far.
            problem = _one_line(error)
        else:
            _delete(self.weights)
            self.weights = loaded
        if "kv_cache" not in self._released:
            self._allocate_kv_anyhow()
        if problem is not None:
            raise OperationFailed(f"the weights could not be loaded: {problem}")

    def release(self, parts: tuple[MemoryPart, ...]) -> None:
        """Weights move to the host's memory, KV pages are dropped."""
        if "weights" in parts and "weights" not in self._released:
            self._on_host = [_HostWeight.of(array) for array in self.weights]
            _delete(self.weights)
            self._released.add("weights")
        if "kv_cache" in parts:
            self._free_kv()
            self._released.add("kv_cache")

    def resume(self, parts: tuple[MemoryPart, ...]) -> None:
        """Raises OperationFailed, with everything as it was, if there is no room."""
        wanted = self._released & set(parts)
        placed: dict[int, jax.Array] = {}
        try:
            # First what needs the largest pieces, as at the start.
            if "kv_cache" in wanted:
                self._allocate_kv()
            if "weights" in wanted:
                sizes = [math.prod(weight.shape) for weight in self._on_host]
                for index in np.argsort(sizes, kind="stable")[::-1].tolist():
                    placed[index] = self._on_host[index].on_devices().block_until_ready()
        except Exception as error:
            _delete(placed)
            if "kv_cache" in wanted:
                self._free_kv()
            raise OperationFailed(f"no memory: {error}") from None
        if "weights" in wanted:
            self.weights = tuple(placed[index] for index in range(len(placed)))
            self._on_host = []
        self._released -= wanted

    def respread(self, programs: Programs, times: PartTimes, *, compile_first: bool) -> None:
        """Move the weights to where other programs want them, with empty KV pages there. `times`
        gets the parts of this.

        Raises OperationRefused while something is released, OperationFailed with everything where
        it was, and anything else if it could not be brought back there.
        """
        if self._released:
            raise OperationRefused("memory is released; resume it first")
        before = self.programs
        self._free_kv()
        problem = None
        try:
            if compile_first:
                programs.compile(lambda done, total: None)
                times.ended(COMPILING)
            problem = self._move(programs)
            times.ended("moving weights")
            if problem is None:
                self._allocate_kv()
                times.ended("allocating pages")
        except Exception as error:
            problem = _one_line(error)
        if problem is not None:
            self._free_kv()
            if not self.weights or (self.programs is not before and self._move(before)):
                raise RuntimeError(f"the weights are lost: {problem}")
            self._allocate_kv_anyhow()
            raise OperationFailed(f"the model could not be moved: {problem}")

    def _move(self, programs: Programs) -> str | None:
        """Move the weights one by one, or say why they stay; if they cannot even stay, raise with
        none left. Both places of one are taken for a moment."""
        before = self.programs
        arrays: list[Any] = list(self.weights)
        # Not deleted but forgotten: a device may lend its part of an old array to the new one.
        self.weights = ()
        problem = None
        moved = 0
        try:
            while moved < len(arrays):
                arrays[moved] = _moved(arrays[moved], moved, before, programs)
                moved += 1
        except Exception as error:
            problem = _one_line(error)
            for index in range(moved):
                arrays[index] = _moved(arrays[index], index, programs, before)
        else:
            self.programs = programs
        self.weights = tuple(arrays)
        return problem

    def _allocate_kv(self) -> None:
        self.kv = self.programs.allocate_kv()
        self.state = self.programs.allocate_state()
        jax.block_until_ready((self.kv, self.state))

    def _allocate_kv_anyhow(self) -> None:
        """Weights that went where pages were may leave no piece of memory as large as pages are:
        then they make way, and come back behind the pages."""
        try:
            self._allocate_kv()
        except jax.errors.JaxRuntimeError:
            self.release(MEMORY_PARTS)
            try:
                self.resume(MEMORY_PARTS)
            except OperationFailed as error:
                raise RuntimeError(f"the weights are lost: {error}") from None

    def _free_kv(self) -> None:
        _delete((self.kv, self.state))


class _HostWeight(NamedTuple):
    """A weight in the host's memory, as far as it was on devices of this process."""

    shape: tuple[int, ...]
    place: Any
    parts: dict[Any, np.ndarray[Any, Any]]
    """By where they belong in the whole; parts that several devices have are here once."""

    @classmethod
    def of(cls, array: Any) -> _HostWeight:
        parts: dict[Any, np.ndarray[Any, Any]] = {}
        for shard in array.addressable_shards:
            if shard.index not in parts:
                parts[shard.index] = np.asarray(shard.data)
        return cls(array.shape, array.format, parts)

    def on_devices(self) -> jax.Array:
        return jax.make_array_from_callback(self.shape, self.place, self.parts.__getitem__)


def can_move(here: Programs, there: Programs) -> bool:
    """Whether the weights of some programs can be made those of others."""

    def arrive(weight: jax.ShapeDtypeStruct) -> tuple[int, ...]:
        regroup = functools.partial(_regrouped, here=here, there=there)
        return jax.eval_shape(regroup, weight).shape

    try:
        return all(
            before.shape == after.shape or arrive(before) == after.shape
            for before, after in zip(here.weights, there.weights, strict=True)
        )
    except (TypeError, ValueError):
        return False


def _regrouped(array: jax.Array, here: Programs, there: Programs) -> jax.Array:
    one_each = group_kv_heads(array, here.layout.kv_repeat)
    return repeat_kv_heads(one_each, there.layout.kv_repeat)


def _moved(array: jax.Array, index: int, here: Programs, there: Programs) -> jax.Array:
    """The weight of that index, from where some programs have it to where others do."""
    wanted = there.weights[index]
    if array.shape != wanted.shape:
        array = _regrouped(array, here, there)
    # Across devices first, and only there into another order: jax does not do both at once.
    array = jax.device_put(array, wanted.sharding)
    if wanted.format.layout is not None:
        array = jax.device_put(array, wanted.format)
    return array.block_until_ready()


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _delete(arrays: Any) -> None:
    for array in jax.tree.leaves(arrays):
        if not array.is_deleted():  # as those are that a failed step was given
            array.delete()
