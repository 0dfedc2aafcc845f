"""Each device operation against what the device allows: `python -m bench.kernels`.

A program calls an operation many times in a row, as a model does layer by layer, each time on
another set of arrays, so that none is served by the device's cache. The bound is the longer of
two times: that of moving the bytes and that of the products, at the data sheet's figures. `--tune`
measures the layouts of the attention kernels instead; the best belong into
`pallas_kernels/paged_*/tuning.py`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from bench import kernel_tasks as tasks
from bench.kernel_tasks import LLAMA_8B, QWEN2_7B, TINY, Task
from bench.kernel_timing import (
    FULL,
    PEAKS,
    SMOKE,
    Extent,
    Peaks,
    compile_task,
    make_sets,
    measure_s,
)
from bench.kernel_tuning import best, sweep
from bench.results import write_result
from pallas_kernels.paged_decode.api import paged_decode
from pallas_kernels.paged_prefill.api import paged_prefill

OPS = ("decode", "prefill", "sampling", "token-mask", "quant-matmul", "kv-write")
VOCAB = 128256
LLAMA_8B_MATRICES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
"""Outputs and inputs of the products of a layer."""


def serving_tasks(op: str, backend: str, kv_dtype: str) -> Iterator[Task]:
    """The cases of an operation as models of 7 to 8 billion parameters pose them."""
    dtype = "bfloat16"
    match op:
        case "decode":
            run = functools.partial(paged_decode, backend=backend)
            for heads, rows, kv_len in itertools.product(
                (LLAMA_8B, QWEN2_7B), (1, 32, 128, 256), (1024, 4096)
            ):
                yield tasks.decode_task(heads, rows, kv_len, dtype, kv_dtype, run)
        case "prefill":
            run = functools.partial(paged_prefill, backend=backend)
            for heads, shape in itertools.product(
                (LLAMA_8B, QWEN2_7B), ((1, 2048, 0), (1, 8192, 0), (1, 2048, 6144), (16, 128, 2048))
            ):
                yield tasks.prefill_task(heads, *shape, dtype, kv_dtype, run)
        case "sampling":
            for temperature, top_k, top_p in ((0, -1, 1), (1, -1, 1), (1, -1, 0.9), (1, 50, 0.9)):
                yield tasks.sampling_task(
                    256, VOCAB, backend, temperature=temperature, top_k=top_k, top_p=top_p
                )
        case "token-mask":
            yield tasks.token_mask_task(256, VOCAB, backend)
        case "quant-matmul":
            for scheme, tokens, matrix in itertools.product(
                ("fp8", "int8", "int4"), (1, 16, 256), LLAMA_8B_MATRICES
            ):
                yield tasks.quant_matmul_task(scheme, tokens, *matrix, backend)
        case _:
            for heads, tokens in itertools.product((LLAMA_8B, QWEN2_7B), (256, 2048)):
                yield tasks.kv_write_task(heads, tokens, 4096, dtype)


def smoke_tasks(op: str, backend: str) -> Iterator[Task]:
    """One case, so small that any device takes it."""
    match op:
        case "decode":
            run = functools.partial(paged_decode, backend=backend)
            yield tasks.decode_task(TINY, 2, 40, "float32", "float32", run)
        case "prefill":
            run = functools.partial(paged_prefill, backend=backend)
            yield tasks.prefill_task(TINY, 2, 9, 20, "float32", "float32", run)
        case "sampling":
            yield tasks.sampling_task(2, 300, backend, temperature=1, top_k=50, top_p=0.9)
        case "token-mask":
            yield tasks.token_mask_task(2, 300, backend)
        case "quant-matmul":
            yield tasks.quant_matmul_task("int4", 2, 40, 256, backend)
        case _:
            yield tasks.kv_write_task(TINY, 5, 4, "float32")


def run_task(task: Task, extent: Extent, peaks: Peaks | None) -> dict[str, Any]:
    """A task's line of the table."""
    program = compile_task(task, extent)
    sets = make_sets(task, program.num_sets)
    seconds, _ = measure_s(program, task.make_carry(), sets, extent)
    return {
        "us": seconds * 1e6,
        "gb_per_s": task.work.num_bytes / seconds / 1e9,
        "tflop_per_s": task.work.num_flops / seconds / 1e12,
        "percent_of_bound": peaks.bound_s(task.work) / seconds * 100 if peaks else None,
    }


def show_line(name: str, line: dict[str, Any]) -> None:
    bound = line["percent_of_bound"]
    print(
        f"{name:64} {line['us']:9.1f} {line['gb_per_s']:7.0f} {line['tflop_per_s']:8.1f}",
        f"{bound:10.0f}" if bound is not None else f"{'n/a':>10}",
        flush=True,
    )


def table(
    ops: Sequence[str], backend: str, kv_dtype: str, peaks: Peaks | None, smoke: bool
) -> dict[str, Any]:
    """Measure and print these operations."""
    print(f"{'case':64} {'us':>9} {'GB/s':>7} {'TFLOP/s':>8} {'% of bound':>10}")
    lines: dict[str, Any] = {}
    for op in ops:
        cases = smoke_tasks(op, backend) if smoke else serving_tasks(op, backend, kv_dtype)
        for task in cases:
            name = f"{op}: {task.name}"
            lines[name] = run_task(task, SMOKE if smoke else FULL, peaks)
            show_line(name, lines[name])
    return lines


def tuning_table() -> dict[str, Any]:
    """Measure the layouts of the attention kernels and print the best, in microseconds."""
    lines: dict[str, Any] = {}
    for case, timings in best(sweep(FULL)).items():
        lines[case] = {str(timing.tuning): timing.seconds * 1e6 for timing in timings}
        for tuning, microseconds in lines[case].items():
            print(f"{case:40} {microseconds:9.1f} us  {tuning}")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", choices=OPS, action="append", help="may be repeated; default: all")
    parser.add_argument("--backend", help="default: triton on a GPU, xla elsewhere")
    parser.add_argument("--kv-dtype", default="bfloat16", help="of the pages of attention")
    parser.add_argument("--tune", action="store_true", help="measure the attention's layouts")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, once: do they run?")
    parser.add_argument("--json", metavar="FILE", help="write the figures here as well")
    args = parser.parse_args(arguments)
    device = jax.devices()[0]
    backend = args.backend or ("triton" if device.platform == "gpu" else "xla")
    settings = {"device": device.device_kind, "jax": jax.__version__, "backend": backend}
    print("  ".join(f"{key} {value}" for key, value in settings.items()))
    if args.tune:
        summary = tuning_table()
    else:
        peaks = PEAKS.get(device.device_kind)
        summary = table(args.op or OPS, backend, args.kv_dtype, peaks, args.smoke)
    write_result(args.json, "kernels", settings, summary)


if __name__ == "__main__":
    main()
