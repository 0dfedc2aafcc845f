"""Perplexity of a model on a fixed text: `python -m bench.perplexity`, with the engine's own flags.

The text, the beginning of Jane Austen's Persuasion (1818, in the public domain), is cut into
windows of equal length. Each is a prompt of its own, and the log-probability of every token but its
first counts, so that no window sees the one before it.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxsgl
from bench.results import show, write_result
from jaxsgl.command_line import parse_command_line
from jaxsgl.config import ConfigError, EngineConfig, option
from jaxsgl.loading.model_files import open_model
from jaxsgl.tokenizer import Tokenizer

TEXT = Path(__file__).parent / "texts" / "persuasion.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityBench:
    """bench"""

    text: str | None = option(None, "file with the text; default: 20,000 tokens of a novel")
    num_tokens: int = option(20_000, "tokens of the text that are used, from its beginning")
    window_len: int = option(1024, "tokens per prompt")
    output: str | None = option(None, "file for the result, as JSON")


def windows(token_ids: Sequence[int], window_len: int) -> list[list[int]]:
    """The ids in pieces of `window_len`, the last one shorter; a single left-over id is dropped."""
    starts = range(0, len(token_ids), window_len)
    pieces = [list(token_ids[start : start + window_len]) for start in starts]
    return [piece for piece in pieces if len(piece) > 1]


def run(engine: Any, pieces: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Perplexity over all pieces. `engine` is a `jaxsgl.Engine`."""
    answers = engine.generate(
        input_ids=[list(piece) for piece in pieces],
        sampling_params={"max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True},
        return_logprob=True,
        logprob_start_len=0,
    )
    total, num_scored = 0.0, 0
    for answer in answers:
        scored = [entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]]
        total += math.fsum(scored)
        num_scored += len(scored)
    mean = -total / num_scored
    return {"perplexity": math.exp(mean), "nats_per_token": mean, "num_scored": num_scored}


def main(argv: list[str]) -> None:
    engine_config, bench = parse_command_line(
        argv, "python -m bench.perplexity", __doc__ or "", EngineConfig, PerplexityBench
    )
    _, tokenizer = open_model(engine_config)
    if not isinstance(tokenizer, Tokenizer):
        raise ConfigError("perplexity is measured on text: leave --skip-tokenizer-init out")
    text = Path(bench.text or TEXT).read_text(encoding="utf-8")
    token_ids = tokenizer.encode(text)[: bench.num_tokens]
    with jaxsgl.Engine(**dataclasses.asdict(engine_config)) as engine:
        summary = run(engine, windows(token_ids, bench.window_len))
        model = engine.model
    show(summary)
    settings = dataclasses.asdict(bench) | {"model": model.name, "platform": model.platform}
    write_result(bench.output, "perplexity", settings, summary)


if __name__ == "__main__":
    main(sys.argv[1:])
