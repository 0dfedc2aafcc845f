"""Every layout of the attention kernels for Triton, measured."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench.kernel_tasks import LLAMA_8B, Arrays, Heads, Task, decode_task, prefill_task
from bench.kernel_timing import Extent, Program, compile_task, make_sets, measure_s
from pallas_kernels.paged_decode import triton as decode
from pallas_kernels.paged_decode.tuning import Tuning as DecodeTuning
from pallas_kernels.paged_prefill import triton as prefill
from pallas_kernels.paged_prefill.tuning import Tuning as PrefillTuning

DECODE_LAYOUTS = tuple(
    DecodeTuning(tile_len=tile_len, num_warps=num_warps, num_stages=num_stages)
    for tile_len, num_warps, num_stages in (
        (32, 4, 4),
        (64, 2, 3),
        (64, 4, 3),
        (64, 4, 4),
        (64, 8, 3),
        (128, 4, 2),
        (128, 4, 3),
        (128, 8, 3),
    )
)
DECODE_SPLITS = {1: (16, 32, 64), 32: (1, 2, 4), 128: (1, 2), 256: (1, 2)}
"""By rows."""
DECODE_LENGTHS = (1024, 4096)
PREFILL_SHAPES = ((1, 4096, 0), (16, 128, 2048))
"""Rows, queries of each, cached tokens before them."""


class Timing(NamedTuple):
    case: str
    tuning: Any
    seconds: float


def sweep(extent: Extent) -> Iterator[Timing]:
    """All of it, at the heads of Llama 8B in bfloat16."""
    for rows, splits in DECODE_SPLITS.items():
        tunings = [
            dataclasses.replace(layout, num_splits=num_splits)
            for layout, num_splits in itertools.product(DECODE_LAYOUTS, splits)
        ]
        yield from sweep_decode(LLAMA_8B, rows, DECODE_LENGTHS, tunings, "bfloat16", extent)
    prefill_tunings = [
        PrefillTuning(dot_rows, tile_len, num_warps, num_stages)
        for dot_rows, tile_len, num_warps, num_stages in itertools.product(
            (64, 128), (32, 64, 128), (4, 8), (2, 3)
        )
    ]
    for shape in PREFILL_SHAPES:
        yield from sweep_prefill(LLAMA_8B, shape, prefill_tunings, "bfloat16", extent)


def sweep_decode(
    heads: Heads,
    rows: int,
    kv_lens: Sequence[int],
    tunings: Sequence[DecodeTuning],
    dtype: str,
    extent: Extent,
    interpret: bool = False,
) -> Iterator[Timing]:
    """Programs for the longest length serve all."""
    options = {"soft_cap": None, "window": None, "interpret": interpret}
    every = {
        tuning: decode_task(
            heads,
            rows,
            max(kv_lens),
            dtype,
            dtype,
            functools.partial(decode.paged_decode, tuning=tuning, **options),
        )
        for tuning in tunings
    }
    q, table, lengths = every[tunings[0]].make_carry()
    carries = {
        f"decode {rows} x {kv_len}": (q, table, jnp.full_like(lengths, kv_len))
        for kv_len in kv_lens
    }
    yield from _measure_all(every, carries, extent)


def sweep_prefill(
    heads: Heads,
    shape: tuple[int, int, int],
    tunings: Sequence[PrefillTuning],
    dtype: str,
    extent: Extent,
    interpret: bool = False,
) -> Iterator[Timing]:
    options = {"soft_cap": None, "window": None, "interpret": interpret}
    every = {
        tuning: prefill_task(
            heads,
            *shape,
            dtype,
            dtype,
            functools.partial(prefill.paged_prefill, tuning=tuning, **options),
        )
        for tuning in tunings
    }
    first = every[tunings[0]]
    yield from _measure_all(every, {f"prefill {first.name}": first.make_carry()}, extent)


def _measure_all(
    every: Mapping[Any, Task], carries: Mapping[str, Arrays], extent: Extent
) -> Iterator[Timing]:
    """Every task with every carry; the tasks' sets are alike. A layout that the device has no room
    for is left out."""

    def compiled(task: Task) -> Program | None:
        try:
            return compile_task(task, extent)
        except jax.errors.JaxRuntimeError:
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = list(pool.map(compiled, every.values()))
    sets: list[Arrays] = []
    for (tuning, task), program in zip(every.items(), programs, strict=True):
        if program is None:
            continue
        sets = sets or make_sets(task, program.num_sets)
        for case, carry in carries.items():
            own = tuple(array.copy() for array in carry)
            seconds, sets = measure_s(program, own, sets, extent)
            yield Timing(case, tuning, seconds)


def best(timings: Iterator[Timing], num_best: int = 3) -> dict[str, list[Timing]]:
    """The fastest of each case, in the order of the cases."""
    by_case: dict[str, list[Timing]] = defaultdict(list)
    for timing in timings:
        by_case[timing.case].append(timing)
    return {
        case: sorted(each, key=lambda timing: timing.seconds)[:num_best]
        for case, each in by_case.items()
    }
