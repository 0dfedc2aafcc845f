"""Sharding specs side by side: `python -m bench.sharding --specs "tp=1 tp=2:megatron tp=2:fsdp"`.

Each spec is a mesh and, behind a colon, what `--sharding-rules` takes. For each, the model is
loaded and decodes some rows at one context, one step in flight as in service: step by step, and
in chains if there are any (`--num-continuous-decode-steps`). Without accelerators the CPU is split
into as many devices as the largest mesh asks for: then times say little, and memory and collectives
are those of the partitioned program all the same.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from bench.collectives import KINDS, read_collectives
from bench.results import write_result
from jaxsgl.command_line import parse_command_line
from jaxsgl.config import ConfigError, EngineConfig, option
from jaxsgl.interface import SamplingParams
from jaxsgl.loading.model_files import open_model
from jaxsgl.runner.build import build_runner
from jaxsgl.runner.mesh import make_mesh, parse_mesh
from jaxsgl.runner.platform import CHAIN_LEN
from jaxsgl.runner.runner import ModelRunner
from jaxsgl.step import LAST_TOKEN, SAMPLE, SlotOpening, StepLimits, StepPlan

MIB = 2**20
WARM_STEPS = 3
"""Not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardingBench:
    """bench"""

    specs: str = option(
        "tp=1 tp=2:megatron tp=2:mlp-only tp=2:attention-only tp=2:fsdp tp=2:replicated",
        "specs to compare, separated by spaces",
    )
    rows: str = option("1,8", "numbers of rows that decode together, separated by commas")
    input_len: int = option(256, "tokens that each row has behind it")
    steps: int = option(32, "steps measured")
    plot: str | None = option(None, "file for a picture, .png or .svg")
    output: str | None = option(None, "file for the result, as JSON")


Figures = dict[str, float]


def main(argv: list[str]) -> None:
    config, bench = parse_command_line(
        argv, "python -m bench.sharding", __doc__ or "", EngineConfig, ShardingBench
    )
    specs = [split_spec(text, config) for text in bench.specs.split()]
    rows = [int(text) for text in bench.rows.split(",")]
    config = sized(config, rows, bench)
    largest = max(
        (parse_mesh(mesh) for mesh, _ in specs), key=lambda mesh: math.prod(mesh.values())
    )
    make_mesh(largest)  # before anything else makes jax count its devices
    table: dict[str, Figures] = {}
    for mesh, rules in specs:
        spread = dataclasses.replace(config, mesh=mesh, sharding_rules=rules)
        table[f"{mesh}:{rules}"] = measure(spread, rows, bench)
    print(as_text(table))
    if bench.plot is not None:
        picture(table, rows).savefig(bench.plot, dpi=150)
    write_result(bench.output, "sharding", dataclasses.asdict(bench), table)


def split_spec(text: str, config: EngineConfig) -> tuple[str, str]:
    """Mesh and rules of `mesh:rules`; without a colon the rules are the engine's."""
    mesh, colon, rules = text.partition(":")
    parse_mesh(mesh)
    return mesh, rules if colon else config.sharding_rules


def sized(config: EngineConfig, rows: Sequence[int], bench: ShardingBench) -> EngineConfig:
    """With room for the rows and few programs beyond theirs, where nothing else is asked for."""
    most = max(rows)
    longest_chain = config.num_continuous_decode_steps or CHAIN_LEN
    num_tokens = bench.input_len + 1 + longest_chain * (WARM_STEPS + bench.steps + 1)
    pages_each = -(-num_tokens // config.page_size)
    return dataclasses.replace(
        config,
        max_num_reqs=config.max_num_reqs or most,
        chunked_prefill_size=config.chunked_prefill_size or max(most, 64),
        max_total_tokens=config.max_total_tokens or most * pages_each * config.page_size,
    )


def measure(config: EngineConfig, rows: Sequence[int], bench: ShardingBench) -> Figures:
    """Times in milliseconds, sizes in MiB per device."""
    checkpoint, _ = open_model(config)
    runner = build_runner(config, checkpoint, lambda stage, done, total: None)
    try:
        for note in runner.layout.notes:
            print(f"{config.mesh}:{config.sharding_rules}: {note}")
        figures = program_figures(runner, max(rows))
        for num_rows in rows:
            figures |= decode(runner, num_rows, bench, num_draws=1)
            if runner.limits.chain_len > 1:
                figures |= decode(runner, num_rows, bench, num_draws=runner.limits.chain_len)
        return figures
    finally:
        runner.close()


def program_figures(runner: ModelRunner, num_rows: int) -> Figures:
    """Of the forward program that decodes so many rows."""
    programs = runner.programs
    bucket = next(
        bucket
        for bucket in programs.buckets
        if bucket.mode == "decode" and bucket.num_rows >= num_rows
    )
    compiled = programs.forward[bucket].run
    args = next(call.args for call in programs.calls() if call.run is compiled)
    collectives = read_collectives(compiled.as_text())
    weights, kv = (sum(map(bytes_each, jax.tree.leaves(tree))) for tree in args[:2])
    figures = {
        "arguments": len(jax.tree.leaves(args)),
        "weights_mib": weights / MIB,
        "kv_mib": kv / MIB,
        "temporary_mib": compiled.memory_analysis().temp_size_in_bytes / MIB,
    }
    for kind in KINDS:
        if kind in collectives.count:
            figures[f"{kind}s"] = collectives.count[kind]
            figures[f"{kind}s_mib"] = collectives.num_bytes[kind] / MIB
    return figures


def bytes_each(array: jax.ShapeDtypeStruct) -> int:
    """What a placed array takes on each device."""
    assert array.sharding is not None
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def decode(runner: ModelRunner, num_rows: int, bench: ShardingBench, num_draws: int) -> Figures:
    """Median time per token of a row, and of the host's part in it, with so many draws a step."""
    runner.reset()
    in_flight: deque[Any] = deque()
    ended_s: list[float] = []
    dispatch_ms: list[float] = []
    context_len = bench.input_len
    for step in range(WARM_STEPS + bench.steps + 1):
        num_tokens = num_draws if step else 1
        plan = decode_plan(runner.limits, num_rows, context_len, step, num_tokens)
        context_len += num_tokens
        begin_s = time.perf_counter()
        in_flight.append(runner.dispatch(plan))
        dispatch_ms.append(1e3 * (time.perf_counter() - begin_s))
        if len(in_flight) > 1:
            in_flight.popleft().wait()
            ended_s.append(time.perf_counter())
    in_flight.popleft().wait()
    step_ms = 1e3 * np.diff(ended_s)[WARM_STEPS - 1 :]
    name = f"{num_rows}" if num_draws == 1 else f"{num_rows}_chained"
    return {
        f"step_ms_{name}": float(np.median(step_ms)) / num_draws,
        f"dispatch_ms_{name}": float(np.median(dispatch_ms[WARM_STEPS:])) / num_draws,
    }


def decode_plan(
    limits: StepLimits, num_rows: int, context_len: int, step: int, num_draws: int
) -> StepPlan:
    """The next tokens of rows whose pages hold nothing but zeros; the first step opens them."""
    rows = np.arange(num_rows, dtype=np.int32)
    num_tokens = num_rows * num_draws
    q_start = np.arange(0, num_tokens + 1, num_draws, dtype=np.int32)
    pages_each = (limits.num_pages - 1) // limits.max_rows
    edits = np.zeros((0, 3), np.int32)
    openings: tuple[SlotOpening, ...] = ()
    if step == 0:
        slot, index = np.divmod(np.arange(num_rows * pages_each), pages_each)
        edits = np.stack([slot, index, 1 + slot * pages_each + index], axis=1).astype(np.int32)
        greedy = SamplingParams(temperature=0.0, seed=0, ignore_eos=True)
        openings = tuple(
            SlotOpening(row, greedy, np.zeros(0, np.int32), 0, ()) for row in rows.tolist()
        )
    return StepPlan(
        step_id=step,
        mode="decode" if num_draws == 1 else "chain",
        slot=rows,
        q_start=q_start,
        token_ids=np.full(num_tokens, LAST_TOKEN if step else 1, np.int32),
        kv_len=np.full(num_rows, context_len + num_draws, np.int32),
        write_from=np.zeros(num_rows, np.int32),
        logit_idx=np.arange(num_tokens, dtype=np.int32),
        logit_start=q_start,
        logit_target=np.full(num_tokens, SAMPLE, np.int32),
        page_edits=edits,
        openings=openings,
    )


def as_text(table: Mapping[str, Figures]) -> str:
    """A column per spec, a line per figure."""
    names = list(dict.fromkeys(name for figures in table.values() for name in figures))
    width = max(map(len, names))
    columns = [max(10, len(spec)) for spec in table]
    lines = [
        " ".join([" " * width, *(f"{spec:>{w}}" for spec, w in zip(table, columns, strict=True))])
    ]
    for name in names:
        values = [figures.get(name) for figures in table.values()]
        cells = ["-" if value is None else f"{value:.4g}" for value in values]
        cells = [f"{cell:>{w}}" for cell, w in zip(cells, columns, strict=True)]
        lines.append(" ".join([f"{name:{width}}", *cells]))
    return "\n".join(lines)


def picture(table: Mapping[str, Figures], rows: Sequence[int]) -> Figure:
    """Step time, memory and collectives of every spec."""
    figure = Figure(figsize=(4 + 1.2 * len(table), 9), layout="constrained")
    times, memory, traffic = figure.subplots(3, 1, sharex=True)
    place = np.arange(len(table))
    for index, num_rows in enumerate(rows):
        width = 0.8 / len(rows)
        heights = [figures[f"step_ms_{num_rows}"] for figures in table.values()]
        times.bar(place + (index + 0.5) * width - 0.4, heights, width, label=f"{num_rows} rows")
    times.set_ylabel("ms per step")
    stack(memory, table, {name: f"{name}_mib" for name in ("weights", "kv", "temporary")})
    memory.set_ylabel("MiB per device")
    stack(traffic, table, {f"{kind}s": f"{kind}s_mib" for kind in KINDS})
    traffic.set_ylabel("MiB of collectives per step")
    traffic.set_xticks(place, list(table), rotation=30, ha="right")
    for panel in times, memory, traffic:
        panel.legend(fontsize=8)
    return figure


def stack(panel: Any, table: Mapping[str, Figures], names: Mapping[str, str]) -> None:
    """Bars of several figures, one on top of the other, by label."""
    bottom = np.zeros(len(table))
    for label, name in names.items():
        heights = np.array([figures.get(name, 0.0) for figures in table.values()])
        if heights.any():
            panel.bar(range(len(table)), heights, 0.8, bottom=bottom, label=label)
            bottom += heights


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.exit(str(error))
