"""Throughput of the engine in this process: `python -m bench.offline`.

One stream alone, then all prompts at once. Prompts are random token ids, so nothing is cached
between them; answers have their full length.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from dataclasses import dataclass
from typing import Any

import jaxsgl
from bench.prompts import random_prompts
from bench.results import show, write_result
from jaxsgl.command_line import parse_command_line
from jaxsgl.config import EngineConfig, option


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineBench:
    """bench"""

    num_prompts: int = option(16, "prompts in the batch")
    input_len: int = option(64, "tokens per prompt")
    output_len: int = option(128, "tokens per answer")
    temperature: float = option(0.0, "0 is greedy")
    seed: int = option(0, "of the prompts")
    output: str | None = option(None, "file for the result, as JSON")


def run(engine: Any, bench: OfflineBench) -> dict[str, Any]:
    """The figures of a single stream and of a batch. `engine` is a `jaxsgl.Engine`."""
    rng = random.Random(bench.seed)
    first, *batch = random_prompts(
        rng, bench.num_prompts + 1, bench.input_len, engine.model.vocab_size
    )
    params = {
        "max_new_tokens": bench.output_len,
        "ignore_eos": True,
        "temperature": bench.temperature,
    }
    return single_stream(engine, first, params) | whole_batch(engine, batch, params)


def single_stream(engine: Any, prompt: list[int], params: dict[str, Any]) -> dict[str, Any]:
    start_s = time.perf_counter()
    stream = engine.generate(input_ids=prompt, sampling_params=params, stream=True)
    times_s = [time.perf_counter() for _ in stream]
    num_gaps = params["max_new_tokens"] - 1
    decode_s = times_s[-1] - times_s[0]
    return {
        "single_ttft_s": times_s[0] - start_s,
        "single_decode_tokens_per_s": num_gaps / decode_s if decode_s else None,
    }


def whole_batch(engine: Any, prompts: list[list[int]], params: dict[str, Any]) -> dict[str, Any]:
    before = engine.stats()
    start_s = time.perf_counter()
    answers = engine.generate(input_ids=prompts, sampling_params=params)
    elapsed_s = time.perf_counter() - start_s
    stats = engine.stats()
    num_output = sum(answer["meta_info"]["completion_tokens"] for answer in answers)
    num_input = sum(answer["meta_info"]["prompt_tokens"] for answer in answers)
    return {
        "batch_s": elapsed_s,
        "batch_output_tokens_per_s": num_output / elapsed_s,
        "batch_total_tokens_per_s": (num_input + num_output) / elapsed_s,
        "batch_steps": stats.steps - before.steps,
        "recompiles": stats.recompiles,
    }


def main(argv: list[str]) -> None:
    engine_config, bench = parse_command_line(
        argv, "python -m bench.offline", __doc__ or "", EngineConfig, OfflineBench
    )
    start_s = time.perf_counter()
    with jaxsgl.Engine(**dataclasses.asdict(engine_config)) as engine:
        summary = {"start_s": time.perf_counter() - start_s} | run(engine, bench)
        model = engine.model
    show(summary)
    settings = dataclasses.asdict(bench) | {
        "model": model.name,
        "mesh": model.mesh,
        "platform": model.platform,
    }
    write_result(bench.output, "offline", settings, summary)


if __name__ == "__main__":
    main(sys.argv[1:])
