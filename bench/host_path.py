"""What the host adds to the device's time, with a clock for a device: `python -m bench.host_path`.

Burst: prompts that are all cached come at once. From the call of `generate` to the first dispatch,
from the last result to the return of `generate`, and what the whole run takes beyond its steps.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.clocked_device import PAGE_SIZE, ClockedEngine, StepTimes
from bench.prompts import random_prompts
from bench.results import show, write_result
from bench.structured import ENDLESS
from jaxsgl.tokenizer import load_tokenizer
from jaxsgl.tokenizer.tokenizer import Tokenizer

GPU_TIMES = StepTimes(forward_s=5.7e-3, row_s=55e-6, draw_s=0.3e-3)
"""Of Llama-3.1-8B's shapes on an H100: 6 ms for one row, 20 ms for 256."""


def burst(num_rows: int, prompt_len: int, num_tokens: int, repeats: int) -> dict[str, Any]:
    """Milliseconds, the best and the median of the repeats."""
    num_pages = num_rows * ((prompt_len + num_tokens) // PAGE_SIZE + 2) * 2 + 1
    times_ms: dict[str, list[float]] = defaultdict(list)
    num_steps: list[int] = []
    with ClockedEngine(GPU_TIMES, num_rows=num_rows, num_pages=num_pages) as engine:
        rng = np.random.default_rng(0)
        prompts = rng.integers(10, 128_000, (num_rows, prompt_len)).tolist()
        params = {"max_new_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True}
        generate(engine, prompts, params | {"max_new_tokens": 1})
        for _ in range(repeats):
            num_before = len(engine.spans())
            begin_s = time.perf_counter()
            generate(engine, prompts, params)
            end_s = time.perf_counter()
            spans = engine.spans()[num_before:]
            dispatches = [span for span in spans if span.phase == "dispatch"]
            on_device = [span for span in spans if span.phase == "device"]
            num_steps.append(len(on_device))
            ideal_s = num_tokens * step_s(num_rows)
            times_ms["before_first_dispatch"].append((dispatches[0].begin_s - begin_s) * 1e3)
            times_ms["until_first_is_dispatched"].append((dispatches[0].end_s - begin_s) * 1e3)
            times_ms["after_last_result"].append((end_s - on_device[-1].end_s) * 1e3)
            times_ms["beyond_the_steps"].append((end_s - begin_s - ideal_s) * 1e3)
    figures = {f"burst_{name}_ms": best_and_median(times) for name, times in times_ms.items()}
    return {**figures, "burst_steps": best_and_median(num_steps)}


CONSTRAINED_TIMES = StepTimes(forward_s=8e-3, row_s=0.0, draw_s=0.4e-3)
PROMPT_LEN = 64


def step_s(num_rows: int) -> float:
    return GPU_TIMES.forward_s + GPU_TIMES.row_s * num_rows + GPU_TIMES.draw_s


def constrained(
    tokenizer: Tokenizer, num_rows: int, num_tokens: int, repeats: int
) -> dict[str, Any]:
    """Rows under a JSON Schema seen before against free ones, in turns."""
    num_pages = num_rows * ((PROMPT_LEN + num_tokens) // PAGE_SIZE + 2) * 3 + 1
    params = {"max_new_tokens": num_tokens, "temperature": 1.0, "ignore_eos": True}
    kinds = {"free": params, "constrained": params | {"json_schema": ENDLESS}}
    figures: dict[str, list[float]] = defaultdict(list)
    rng = random.Random(0)
    with ClockedEngine(
        CONSTRAINED_TIMES, num_rows=num_rows, num_pages=num_pages, tokenizer=tokenizer
    ) as engine:
        for repeat in range(repeats + 1):
            for kind, sampling in kinds.items():
                prompts = random_prompts(rng, num_rows, PROMPT_LEN, tokenizer.vocab_size)
                num_before = len(engine.spans())
                begin_s = time.perf_counter()
                generate(engine, prompts, sampling)
                elapsed_s = time.perf_counter() - begin_s
                if repeat:  # the first sees the schema for the first time
                    spans = engine.spans()[num_before:]
                    steps = [span for span in spans if span.phase == "device"]
                    between_s = [b.end_s - a.end_s for a, b in pairwise(steps)]
                    figures[f"{kind}_run"].append(elapsed_s * 1e3)
                    figures[f"{kind}_steps"].append(len(steps))
                    figures[f"{kind}_step"].append(statistics.median(between_s) * 1e3)
    summary = {
        f"{name}_ms".replace("steps_ms", "steps"): best_and_median(values)
        for name, values in figures.items()
    }
    return summary


def generate(engine: ClockedEngine, prompts: list[list[int]], params: dict[str, Any]) -> None:
    answers = engine.generate(input_ids=prompts, sampling_params=params)
    num_tokens = params["max_new_tokens"]
    if any(answer["meta_info"]["completion_tokens"] != num_tokens for answer in answers):
        raise RuntimeError("an answer has not its length")


def best_and_median(values: Sequence[float]) -> Mapping[str, float]:
    return {"best": min(values), "median": statistics.median(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--prompt-len", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=9, help="per answer")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tokenizer", help="folder: measure constrained rows instead")
    parser.add_argument("--output", help="file for the result, as JSON")
    args = parser.parse_args()
    if args.tokenizer is None:
        summary = burst(args.rows, args.prompt_len, args.tokens, args.repeats)
    else:
        tokenizer = load_tokenizer(Path(args.tokenizer))
        summary = constrained(tokenizer, args.rows, args.tokens, args.repeats)
    show(summary)
    write_result(args.output, "host_path", vars(args), summary)


if __name__ == "__main__":
    main()
