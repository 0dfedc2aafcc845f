"""The workloads by which other engines were measured, through the engine in this process:
`python -m bench.workloads --model-path … --load-format dummy --skip-tokenizer-init`.

- latency: one prompt of 1,024 tokens; time to first token, the median of five, and time per token
  after it, from that and a run of 257.
- decode: 32, 128 and 256 prompts of 1,024 tokens that were served before, 129 tokens each; the
  run's time divided by 129.
- throughput: 512 prompts of 1,024 tokens, 256 tokens each (W1).
- varied: the same with prompts of 64 to 2,047 tokens, at temperature 1 (W1b).
- prefix: 512 prompts of one of 8 prefixes of 2,048 tokens and 128 tokens of their own, 128 tokens
  each (W3).

Prompts are random token ids; no answer ends early.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

import jaxsgl
from bench.results import show, write_result
from jaxsgl.command_line import parse_command_line
from jaxsgl.config import EngineConfig, option

FIRST_ID = 10
PROMPT_LEN = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadBench:
    """bench"""

    workloads: str = option(
        "latency,decode,throughput,varied,prefix", "which to run, separated by commas"
    )
    rows: str = option("32,128,256", "sizes of the decode workload, separated by commas")
    scale: float = option(
        1.0, "shrinks prompts, answers and batches, for a trial on a slow machine"
    )
    seed: int = option(0, "of the prompts")
    output: str | None = option(None, "file for the result, as JSON")


class Workloads:
    """Each method runs one workload and returns its figures."""

    def __init__(self, engine: Any, bench: WorkloadBench) -> None:
        self._engine = engine
        self._rng = np.random.default_rng(bench.seed)
        self._scale = bench.scale
        self._rows = [int(rows) for rows in bench.rows.split(",")]

    def latency(self) -> dict[str, float]:
        num_tokens = self._size(256)
        self._time([self._ids(self._size(PROMPT_LEN))], 16)
        first_s = statistics.median(
            self._time([self._ids(self._size(PROMPT_LEN))], 1) for _ in range(5)
        )
        whole_s = self._time([self._ids(self._size(PROMPT_LEN))], num_tokens + 1)
        return {
            "ttft_ms": first_s * 1e3,
            "time_per_token_ms": (whole_s - first_s) / num_tokens * 1e3,
        }

    def decode(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        num_tokens = self._size(129)
        for rows in self._rows:
            prompts = [self._ids(self._size(PROMPT_LEN)) for _ in range(self._size(rows))]
            self._time(prompts, 1)
            steps = self._engine.stats().steps
            elapsed_s = self._time(prompts, num_tokens)
            figures[f"decode_{rows}_step_ms"] = elapsed_s / num_tokens * 1e3
            figures[f"decode_{rows}_steps"] = self._engine.stats().steps - steps
        return figures

    def throughput(self) -> dict[str, float]:
        return self._rate("w1", [PROMPT_LEN] * self._size(512))

    def varied(self) -> dict[str, float]:
        lengths = self._rng.integers(64, 2048, self._size(512)).tolist()
        return self._rate("w1b", lengths, temperature=1.0)

    def _rate(self, name: str, lengths: list[int], temperature: float = 0.0) -> dict[str, float]:
        num_tokens = self._size(256)
        prompts = [self._ids(self._size(length)) for length in lengths]
        elapsed_s = self._time(prompts, num_tokens, temperature)
        return {f"{name}_output_tokens_per_s": len(prompts) * num_tokens / elapsed_s}

    def prefix(self) -> dict[str, float]:
        num_prompts, num_tokens = self._size(512), self._size(128)
        prefixes = [self._ids(self._size(2048)) for _ in range(8)]
        prompts = [prefixes[n % 8] + self._ids(self._size(128)) for n in range(num_prompts)]
        return {
            "w3_output_tokens_per_s": num_prompts * num_tokens / self._time(prompts, num_tokens)
        }

    def _size(self, full: int) -> int:
        return max(1, round(full * self._scale))

    def _ids(self, count: int) -> list[int]:
        return self._rng.integers(FIRST_ID, self._engine.model.vocab_size, count).tolist()

    def _time(self, prompts: list[list[int]], num_tokens: int, temperature: float = 0.0) -> float:
        """Seconds until every prompt has its `num_tokens` tokens."""
        params = {"max_new_tokens": num_tokens, "ignore_eos": True, "temperature": temperature}
        start_s = time.perf_counter()
        answers = self._engine.generate(input_ids=prompts, sampling_params=params)
        elapsed_s = time.perf_counter() - start_s
        drawn = sum(answer["meta_info"]["completion_tokens"] for answer in answers)
        if drawn != num_tokens * len(prompts):
            raise RuntimeError(f"{drawn} tokens came of {num_tokens * len(prompts)}")
        return elapsed_s


def run(engine: Any, bench: WorkloadBench) -> dict[str, Any]:
    workloads = Workloads(engine, bench)
    figures: dict[str, Any] = {}
    for name in bench.workloads.split(","):
        figures |= getattr(workloads, name)()
    return figures | {"recompiles": engine.stats().recompiles}


def main(argv: list[str]) -> None:
    engine_config, bench = parse_command_line(
        argv, "python -m bench.workloads", __doc__ or "", EngineConfig, WorkloadBench
    )
    start_s = time.perf_counter()
    with jaxsgl.Engine(**dataclasses.asdict(engine_config)) as engine:
        figures = {"start_s": time.perf_counter() - start_s} | run(engine, bench)
        model = engine.model
    show(figures)
    settings = dataclasses.asdict(bench) | {
        "model": model.name,
        "mesh": model.mesh,
        "platform": model.platform,
    }
    write_result(bench.output, "workloads", settings, figures)


if __name__ == "__main__":
    main(sys.argv[1:])
