"""How long one call of an operation takes on the device, and how long it must take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from bench.kernel_tasks import Arrays, Task, Work

NUM_REPEATS = 7


class Peaks(NamedTuple):
    """A device's figures, per second."""

    num_bytes: float
    num_flops: float
    """Dense products of bfloat16."""

    def bound_s(self, work: Work) -> float:
        return max(work.num_bytes / self.num_bytes, work.num_flops / self.num_flops)


PEAKS = {
    "NVIDIA H100 80GB HBM3": Peaks(3.35e12, 989e12),
    "NVIDIA H200": Peaks(4.8e12, 989e12),
}
"""Of the data sheets, by the device's kind."""


class Extent(NamedTuple):
    """How much is measured."""

    cache_bytes: int
    """All sets together are at least as large, if so many are allowed."""
    most_sets: int
    least_bytes: int
    """Sets are gone through again until a program has moved as many: a host needs up to a
    millisecond to launch one."""
    most_rounds: int
    repeat_s: float


FULL = Extent(
    cache_bytes=512 << 20, most_sets=32, least_bytes=4 << 30, most_rounds=8, repeat_s=0.03
)
SMOKE = Extent(cache_bytes=0, most_sets=1, least_bytes=0, most_rounds=1, repeat_s=0.0)


class Program(NamedTuple):
    """Calls an operation on each of its sets, in rounds."""

    run: Callable[[Arrays, list[Arrays]], tuple[Arrays, list[Arrays]]]
    """Carry and sets, both given away, to what they are then."""
    num_sets: int
    num_calls: int


def compile_task(task: Task, extent: Extent) -> Program:
    num_sets = min(extent.most_sets, max(2, -(-extent.cache_bytes // task.set_bytes)))
    rounds = -(-extent.least_bytes // (num_sets * task.set_bytes))
    num_calls = num_sets * min(max(rounds, 1), extent.most_rounds)

    def run(carry: Arrays, sets: list[Arrays]) -> tuple[Arrays, list[Arrays]]:
        sets = list(sets)
        for number in range(num_calls):
            carry, sets[number % num_sets] = task.call(carry, sets[number % num_sets])
        return carry, sets

    arguments = jax.eval_shape(task.make_carry), [jax.eval_shape(task.make_set, 0)] * num_sets
    return Program(
        jax.jit(run, donate_argnums=(0, 1)).lower(*arguments).compile(), num_sets, num_calls
    )


def make_sets(task: Task, num_sets: int) -> list[Arrays]:
    return [task.make_set(number) for number in range(num_sets)]


def measure_s(
    program: Program, carry: Arrays, sets: list[Arrays], extent: Extent
) -> tuple[float, list[Arrays]]:
    """Seconds per call, the median of several repeats, and the sets to go on with."""

    def elapsed_s(num_runs: int) -> float:
        nonlocal carry, sets
        start_s = time.perf_counter()
        for _ in range(num_runs):
            carry, sets = program.run(carry, sets)
        jax.block_until_ready((carry, sets))
        return time.perf_counter() - start_s

    elapsed_s(1)
    num_runs = max(1, round(extent.repeat_s / elapsed_s(1)))
    repeats_s = [elapsed_s(num_runs) for _ in range(NUM_REPEATS)]
    return statistics.median(repeats_s) / (num_runs * program.num_calls), sets
