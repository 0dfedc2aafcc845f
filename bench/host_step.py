"""Host time per step of a full decode batch: `python -m bench.host_step`.

First the scheduler alone, its steps answered at once: what planning and applying cost. Then the
whole engine with a tiny random model, read off its step trace: that adds dispatching to the device,
and whatever else runs in the process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import jaxsgl
from bench.results import show, spread, write_result
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.interface import SamplingParams
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from jaxsgl.step import StepLimits, StepPlan, StepResult

PAGE_SIZE = 16
PROMPT_LEN = 32
VOCAB_SIZE = 4096
TINY_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
HOST_PHASES = ("plan", "dispatch", "apply")


def prompt_of(row: int, prompt_len: int) -> list[int]:
    return [(row * prompt_len + n) % (VOCAB_SIZE - 1) + 1 for n in range(prompt_len)]


def scheduler_alone(num_rows: int, num_steps: int) -> dict[str, Any]:
    times_ms = scheduler_times(num_rows, num_steps, PROMPT_LEN)
    return {f"scheduler_{name}_ms": spread(times) for name, times in times_ms.items()}


def scheduler_times(num_rows: int, num_steps: int, prompt_len: int) -> dict[str, list[float]]:
    """Milliseconds to plan and to apply each step of `num_rows` decoding rows."""
    num_pages = num_rows * ((prompt_len + num_steps) // PAGE_SIZE + 2) + 1
    limits = StepLimits(
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        num_slots=num_rows,
        max_rows=num_rows,
        max_tokens=num_rows * prompt_len,
        max_logits=num_rows,
        max_pages_per_row=num_pages - 1,
        vocab_size=VOCAB_SIZE,
    )
    scheduler = Scheduler(
        limits,
        KVCacheManager(num_pages, PAGE_SIZE),
        Vocabulary([b" word"] * VOCAB_SIZE, (0,)),
        SchedulingSettings(max_len=(num_pages - 1) * PAGE_SIZE),
    )
    sampling = SamplingParams(max_tokens=num_steps, ignore_eos=True, seed=0)
    for row in range(num_rows):
        scheduler.add(str(row), prompt_of(row, prompt_len), sampling)
    times_ms: dict[str, list[float]] = defaultdict(list)
    while True:
        begin_s = time.perf_counter()
        plan = scheduler.plan_step()
        planned_s = time.perf_counter()
        if plan is None:
            break
        result = draw(plan)
        drawn_s = time.perf_counter()
        scheduler.apply(result)
        scheduler.take_outputs()
        applied_s = time.perf_counter()
        if plan.mode == "decode" and plan.num_rows == num_rows:
            times_ms["plan"].append((planned_s - begin_s) * 1e3)
            times_ms["apply"].append((applied_s - drawn_s) * 1e3)
    return times_ms


def draw(plan: StepPlan) -> StepResult:
    drawn = (plan.slot + plan.kv_len[-1]) % (VOCAB_SIZE - 1) + 1
    return StepResult(plan.step_id, drawn.astype(np.int32), np.ones(len(drawn), np.bool_))


def whole_engine(num_rows: int, num_steps: int) -> dict[str, Any]:
    """Milliseconds of each part of such a step in an engine with a tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(TINY_MODEL))
        with jaxsgl.Engine(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            max_num_reqs=num_rows,
            chunked_prefill_size=num_rows * PROMPT_LEN,
            context_length=PROMPT_LEN + num_steps,
            max_total_tokens=num_rows * (PROMPT_LEN + num_steps + PAGE_SIZE),
        ) as engine:
            prompts = [prompt_of(row, PROMPT_LEN) for row in range(num_rows)]
            params = {"max_new_tokens": num_steps, "ignore_eos": True, "temperature": 0}
            engine.generate(input_ids=prompts, sampling_params=params)
            trace = engine.step_trace()
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    full = {
        event["args"]["step"]
        for event in spans
        if event["args"].get("rows") == event["args"].get("tokens") == num_rows
    }
    times_ms: dict[str, list[float]] = defaultdict(list)
    host_ms: dict[int, float] = defaultdict(float)
    for event in spans:
        step = event["args"]["step"]
        if step in full:
            times_ms[event["name"]].append(event["dur"] / 1e3)
            if event["name"] in HOST_PHASES:
                host_ms[step] += event["dur"] / 1e3
    parts = {f"engine_{name}_ms": spread(times) for name, times in times_ms.items()}
    return parts | {"engine_host_ms": spread(list(host_ms.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", help="file for the result, as JSON")
    args = parser.parse_args()
    summary = scheduler_alone(args.rows, args.steps) | whole_engine(args.rows, args.steps)
    show(summary)
    write_result(args.output, "host_step", vars(args), summary)


if __name__ == "__main__":
    main()
