"""Programs of prompts on the engine of this process: `python -m bench.language`.

The programs of `examples/language/`, first as they are, then with the cache off and one request
at a time; what the radix cache served, as a share of what a cache that never loses anything would
have; and how much faster they were, beside what the numbers of tokens promise. Then a thousand
forks of one beginning, and a batch of runs against the same prompts given to the engine at once.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Self, cast

import psutil

import jaxsgl as sgl
from bench.ideal_cache import IdealCache
from bench.results import show, write_result
from examples.language import chat, few_shot_qa, json_extraction, judge, rag, tree_of_thought
from jaxsgl.command_line import parse_command_line
from jaxsgl.config import EngineConfig, option
from jaxsgl.interface import Delta, EngineClient, GenerateRequest, ModelInfo, TokenPrompt
from jaxsgl.lang.engine_backend import EngineBackend
from jaxsgl.lang.engine_context import EngineContext

PROGRAMS = {
    "few-shot QA": few_shot_qa,
    "tree of thought": tree_of_thought,
    "judge": judge,
    "multi-turn chat": chat,
    "JSON extraction": json_extraction,
    "RAG": rag,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageBench:
    """bench"""

    num_forks: int = option(1000, "forks of one beginning")
    prefix_len: int = option(500, "tokens of that beginning, about")
    num_rows: int = option(500, "runs of the batch")
    output_len: int = option(16, "tokens per answer of the batch")
    repeats: int = option(2, "times that programs and batch are measured; the best counts")
    seed: int = option(0, "of texts")
    output: str | None = option(None, "file for the result, as JSON")


class Recorder:
    """An `interface.EngineClient` that notes what passes, as far as programs use one."""

    def __init__(self, client: EngineClient, page_size: int) -> None:
        self._client = client
        self._ideal = IdealCache(page_size)
        self.num_prompt = 0
        self.num_cached = 0
        self.num_ideal = 0
        """Prompt tokens that a cache without bounds would have had."""
        self.num_output = 0

    @property
    def model(self) -> ModelInfo:
        return self._client.model

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        assert isinstance(request.prompt, TokenPrompt)
        if request.sampling.max_tokens == 0:
            async for delta in self._commit(request):
                yield delta
            return
        tokens = list(request.prompt.token_ids)
        self.num_prompt += len(tokens)
        found = self._ideal.look_up(tokens)
        if request.sampling.prompt_logprobs:
            # The first scored token follows from the one before it.
            found = min(found, request.sampling.prompt_logprobs_from - 1)
        self.num_ideal += found
        self._ideal.insert(tokens)
        usage = None
        async for delta in self._client.generate(request):
            tokens += delta.token_ids
            usage = delta.usage
            yield delta
        assert usage is not None
        self.num_cached += usage.cached_tokens
        self.num_output += usage.completion_tokens
        self._ideal.insert(tokens)

    async def _commit(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """No program asks for it: what it computes counts against what the cache gives."""
        async for delta in self._client.generate(request):
            if delta.finish is not None:
                self.num_cached -= delta.usage.prompt_tokens - delta.usage.cached_tokens
            yield delta

    def let_go(self, request_id: str) -> None:
        self._client.let_go(request_id)

    def figures(self) -> dict[str, float]:
        num_all = self.num_prompt + self.num_output
        return {
            "prompt_tokens": self.num_prompt,
            "output_tokens": self.num_output,
            "hit_rate_percent": 100 * self.num_cached / self.num_prompt,
            "of_ideal_percent": 100 * self.num_cached / max(1, self.num_ideal),
            "ideal_speed_up": num_all / (num_all - self.num_ideal),
        }


class RecordingBackend(EngineBackend):
    """An engine whose programs pass a Recorder."""

    def __init__(self, engine: Any, page_size: int) -> None:
        super().__init__(engine)
        self.recorder = Recorder(engine.client, page_size)

    def open(self) -> EngineContext:
        client = cast(EngineClient, self.recorder)  # programs use no more of it
        return EngineContext(client, self._tokenizer, self._forms)


def time_programs(engine: Any, repeats: int) -> dict[str, tuple[float, list[str]]]:
    """Seconds at best, each time with an empty cache, and answers."""
    measured: dict[str, tuple[float, list[str]]] = {}
    for name, program in PROGRAMS.items():
        times_s: list[float] = []
        answers: list[str] = []
        for _ in range(repeats):
            engine.flush_cache()
            begin_s = time.perf_counter()
            answers = program.run(engine)
            times_s.append(time.perf_counter() - begin_s)
        measured[name] = min(times_s), answers
    return measured


def count_programs(engine: Any, page_size: int) -> dict[str, dict[str, float]]:
    """`Recorder.figures` of each, in an empty cache."""
    figures: dict[str, dict[str, float]] = {}
    for name, program in PROGRAMS.items():
        engine.flush_cache()
        backend = RecordingBackend(engine, page_size)
        program.run(backend)
        figures[name] = backend.recorder.figures()
    return figures


@sgl.function
def many_forks(s: Any, beginning: str, size: int) -> None:
    s += beginning
    forks = s.fork(size)
    forks += lambda n: f" {n}:" + sgl.gen("x", max_tokens=4, temperature=0, ignore_eos=True)
    forks.join()


def fork_figures(engine: Any, bench: LanguageBench) -> dict[str, float]:
    """What many forks of one beginning cost, in computed tokens, memory and threads."""
    rng = random.Random(bench.seed)
    # A number of three digits and a space are four tokens, or a little less.
    beginning = _numbers(rng, bench.prefix_len // 4)
    many_forks.run(beginning=_numbers(rng, bench.prefix_len // 4), size=8, backend=engine)
    engine.flush_cache()
    before = engine.stats()
    with PeakUse() as peak:
        state = many_forks.run(beginning=beginning, size=bench.num_forks, backend=engine)
    assert len(state["x"]) == bench.num_forks
    stats = engine.stats()
    return {
        "beginning_tokens": len(engine.tokenizer.encode(beginning)),
        "fork_prompt_tokens": stats.prompt_tokens - before.prompt_tokens,
        "fork_tokens_computed": (stats.prompt_tokens - before.prompt_tokens)
        - (stats.cached_tokens - before.cached_tokens),
        "fork_memory_mib": peak.memory_bytes / 2**20,
        "fork_threads": peak.num_threads,
        "fork_s": peak.elapsed_s,
    }


class PeakUse:
    """How much more memory and how many more threads this process had at one time, in a block."""

    memory_bytes = 0
    num_threads = 0
    elapsed_s = 0.0

    def __enter__(self) -> Self:
        self._process = psutil.Process()
        self._over = threading.Event()
        self._before = self._process.memory_info().rss, threading.active_count() + 1
        self._watcher = threading.Thread(target=self._watch)
        self._begin_s = time.perf_counter()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed_s = time.perf_counter() - self._begin_s
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._over.wait(0.02)
            memory_bytes = self._process.memory_info().rss - self._before[0]
            self.memory_bytes = max(self.memory_bytes, memory_bytes)
            self.num_threads = max(self.num_threads, threading.active_count() - self._before[1])


@sgl.function
def one_answer(s: Any, text: str, output_len: int) -> None:
    s += text + sgl.gen("x", max_tokens=output_len, temperature=0, ignore_eos=True)


def batch_figures(engine: Any, bench: LanguageBench) -> dict[str, float]:
    """Answers per second of `run_batch`, and of the engine given such prompts at once, in turns."""
    rng = random.Random(bench.seed)
    params = {"max_new_tokens": bench.output_len, "temperature": 0, "ignore_eos": True}

    def texts() -> list[str]:
        return [_numbers(rng, 10) for _ in range(bench.num_rows)]

    def run_batch() -> list[str]:
        rows = [(text, bench.output_len) for text in asked]
        return [run["x"] for run in one_answer.run_batch(rows, backend=engine)]

    def generate() -> list[str]:
        return [answer["text"] for answer in engine.generate(asked, params)]

    best = {"run_batch_rows_per_s": 0.0, "engine_rows_per_s": 0.0}
    for _ in range(bench.repeats):
        for name, run in zip(best, (run_batch, generate), strict=True):
            asked = texts()
            begin_s = time.perf_counter()
            answers = run()
            best[name] = max(best[name], len(answers) / (time.perf_counter() - begin_s))
    share = best["run_batch_rows_per_s"] / best["engine_rows_per_s"]
    return best | {"run_batch_percent": 100 * share}


def _numbers(rng: random.Random, count: int) -> str:
    return " ".join(str(rng.randrange(100, 1000)) for _ in range(count))


def main(argv: list[str]) -> None:
    engine_config, bench = parse_command_line(
        argv, "python -m bench.language", __doc__ or "", EngineConfig, LanguageBench
    )
    settings = dataclasses.asdict(engine_config)
    with sgl.Engine(**settings) as engine:
        figures = count_programs(engine, engine_config.page_size)
        together = time_programs(engine, bench.repeats)
        summary = fork_figures(engine, bench) | batch_figures(engine, bench)
        model = engine.model
    settings |= {"radix_cache": False, "max_num_reqs": 1}
    with sgl.Engine(**settings) as engine:
        apart = time_programs(engine, 1)
    for name, each in figures.items():
        each["speed_up"] = apart[name][0] / together[name][0]
        each["of_ideal_speed_up"] = each["speed_up"] / each["ideal_speed_up"]
        each["same_answers"] = float(apart[name][1] == together[name][1])
        summary |= {f"{name}, {figure}": value for figure, value in each.items()}
    show(summary)
    shown = dataclasses.asdict(bench) | {"model": model.name, "platform": model.platform}
    write_result(bench.output, "language", shown, summary)


if __name__ == "__main__":
    main(sys.argv[1:])
