"""What a GPU does while it decodes: `python -m bench.device_profile --model-path …`.

Runs rows that decode together under jax's profiler, then prints the share of time in which no
kernel ran, and the kernels that took longest. The first and the last tenth of the run are left out:
rows join and leave there.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.profiler import ProfileData

import jaxsgl
from bench.results import show, write_result
from jaxsgl.command_line import parse_command_line
from jaxsgl.config import ConfigError, EngineConfig, option


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileBench:
    """bench"""

    rows: str = option("1,32,256", "numbers of rows that decode together, separated by commas")
    input_len: int = option(1024, "tokens per prompt")
    output_len: int = option(64, "tokens per answer")
    top: int = option(12, "kernels listed")
    output: str | None = option(None, "file for the result, as JSON")


class Kernel(NamedTuple):
    name: str
    start_ns: float
    end_ns: float


def read_kernels(folder: Path) -> list[Kernel]:
    """What ran on the first GPU, copies included, in the order of their beginnings.

    Raises FileNotFoundError or ValueError for a folder without such a profile.
    """
    (path,) = folder.rglob("*.xplane.pb")
    for plane in ProfileData.from_file(str(path)).planes:
        if plane.name.startswith("/device:GPU:"):
            kernels = [
                Kernel(event.name, event.start_ns, event.start_ns + event.duration_ns)
                for line in plane.lines
                if line.name.startswith("Stream")
                for event in line.events
            ]
            return sorted(kernels, key=lambda kernel: kernel.start_ns)
    raise ValueError(f"{path}: nothing ran on a GPU")


def inner_part(kernels: list[Kernel]) -> list[Kernel]:
    start_ns, end_ns = kernels[0].start_ns, max(kernel.end_ns for kernel in kernels)
    tenth_ns = (end_ns - start_ns) / 10
    return [k for k in kernels if start_ns + tenth_ns < k.start_ns < end_ns - tenth_ns]


def idle_share(kernels: Iterable[Kernel]) -> float:
    """Share of the time between the first beginning and the last end in which nothing ran."""
    idle_ns, first_ns, busy_until_ns = 0.0, None, 0.0
    for kernel in kernels:
        if first_ns is None:
            first_ns = busy_until_ns = kernel.start_ns
        idle_ns += max(0.0, kernel.start_ns - busy_until_ns)
        busy_until_ns = max(busy_until_ns, kernel.end_ns)
    if first_ns is None:
        raise ValueError("no kernels")
    return idle_ns / (busy_until_ns - first_ns)


def longest(kernels: Iterable[Kernel], count: int) -> list[tuple[str, float, int]]:
    """(name, milliseconds in all, times run) of the kernels that took longest."""
    total_ns: collections.Counter[str] = collections.Counter()
    times: collections.Counter[str] = collections.Counter()
    for kernel in kernels:
        total_ns[kernel.name] += int(kernel.end_ns - kernel.start_ns)
        times[kernel.name] += 1
    return [(name, ns / 1e6, times[name]) for name, ns in total_ns.most_common(count)]


def record(engine: Any, rows: int, bench: ProfileBench, folder: Path) -> int:
    """Profile rows decoding after prompts that were served before; the steps it took."""
    rng = np.random.default_rng(rows)
    prompts = rng.integers(10, engine.model.vocab_size, (rows, bench.input_len)).tolist()
    params = {"max_new_tokens": 1, "ignore_eos": True, "temperature": 0.0}
    engine.generate(input_ids=prompts, sampling_params=params)
    steps = engine.stats().steps
    params["max_new_tokens"] = bench.output_len
    with jax.profiler.trace(str(folder)):
        engine.generate(input_ids=prompts, sampling_params=params)
    return engine.stats().steps - steps


def profile(engine: Any, rows: int, bench: ProfileBench) -> dict[str, float]:
    """The figures of one number of rows; prints its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        steps = record(engine, rows, bench, Path(folder))
        kernels = inner_part(read_kernels(Path(folder)))
    span_ms = (kernels[-1].end_ns - kernels[0].start_ns) / 1e6
    print(f"{rows} rows, {steps} steps; {span_ms:.1f} ms of them:")
    for name, total_ms, times in longest(kernels, bench.top):
        mean_us = 1e3 * total_ms / times
        print(
            f"  {total_ms:9.2f} ms {100 * total_ms / span_ms:5.1f} %"
            f" {times:6d} x {mean_us:7.1f} us  {name[:70]}"
        )
    return {f"idle_percent_{rows}": 100 * idle_share(kernels)}


def main(argv: list[str]) -> None:
    engine_config, bench = parse_command_line(
        argv, "python -m bench.device_profile", __doc__ or "", EngineConfig, ProfileBench
    )
    figures: dict[str, float] = {}
    with jaxsgl.Engine(**dataclasses.asdict(engine_config)) as engine:
        if engine.model.platform != "gpu":
            raise ConfigError("there is no GPU to profile")
        for rows in bench.rows.split(","):
            figures |= profile(engine, int(rows), bench)
    show(figures)
    write_result(bench.output, "device_profile", dataclasses.asdict(bench), figures)


if __name__ == "__main__":
    main(sys.argv[1:])
