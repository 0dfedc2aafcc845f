"""Structured output in the engine of this process: `python -m bench.structured`.

First what a grammar costs while decoding: the same prompts, answers of full length, free and under
a JSON Schema that was seen before, in turns. Then, with `--schemas FILE`, answers at temperature 1
under the schemas of a file (JSON lines with a `schema`): how many are finished, and how many of
those `jsonschema` accepts.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import ValidationError
from jsonschema.validators import validator_for

import jaxsgl
from bench.prompts import random_prompts
from bench.results import show, write_result
from jaxsgl.command_line import parse_command_line
from jaxsgl.config import EngineConfig, option
from jaxsgl.interface import InvalidRequest, JsonSchemaGrammar

ENDLESS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "kind": {"enum": ["red", "green", "blue"]},
            "value": {"type": "number"},
        },
        "required": ["name", "kind", "value"],
        "additionalProperties": False,
    },
    "minItems": 100_000,
}
"""A schema of records whose answers have their full length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredBench:
    """bench"""

    num_prompts: int = option(16, "streams at once")
    input_len: int = option(64, "tokens per prompt")
    output_len: int = option(128, "tokens per answer")
    repeats: int = option(3, "times that both are measured; the best of each counts")
    schemas: str | None = option(None, "file of schemas, as JSON lines")
    num_answers: int = option(500, "answers under them")
    max_tokens: int = option(256, "tokens of each at most")
    strict_complete: bool = option(False, "lead answers to their end before that")
    seed: int = option(0, "of the prompts and draws")
    output: str | None = option(None, "file for the result, as JSON")


def slow_down(engine: Any, bench: StructuredBench) -> dict[str, Any]:
    """Tokens per second of all streams together, free and constrained."""
    rng = random.Random(bench.seed)
    params = {"max_new_tokens": bench.output_len, "temperature": 1.0, "ignore_eos": True}
    kinds = {"free": params, "constrained": params | {"json_schema": ENDLESS}}
    best = dict.fromkeys(kinds, 0.0)
    for repeat in range(bench.repeats + 1):
        for kind, sampling in kinds.items():
            vocab_size = engine.model.vocab_size
            prompts = random_prompts(rng, bench.num_prompts, bench.input_len, vocab_size)
            samplings = [sampling | {"sampling_seed": n} for n in range(len(prompts))]
            rate = _rate(engine, prompts, samplings)
            if repeat:  # the first sees the schema for the first time
                best[kind] = max(best[kind], rate)
    return {
        "free_tokens_per_s": best["free"],
        "constrained_tokens_per_s": best["constrained"],
        "slow_down_percent": 100 * (best["free"] / best["constrained"] - 1),
    }


def _rate(engine: Any, prompts: list[list[int]], samplings: list[dict[str, Any]]) -> float:
    begin_s = time.perf_counter()
    answers = engine.generate(input_ids=prompts, sampling_params=samplings)
    elapsed_s = time.perf_counter() - begin_s
    return sum(answer["meta_info"]["completion_tokens"] for answer in answers) / elapsed_s


def answers_under_schemas(
    engine: Any, bench: StructuredBench, path: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How many answers are finished, and valid; and what became of each."""
    schemas = [json.loads(line)["schema"] for line in path.read_text().splitlines()]
    served = [schema for schema in schemas if _is_served(engine, schema)]
    asked = [served[n % len(served)] for n in range(bench.num_answers)]
    prompt = "A JSON document: "
    samplings = [
        {
            "json_schema": schema,
            "max_new_tokens": bench.max_tokens,
            "temperature": 1.0,
            "sampling_seed": bench.seed + n,
            "strict_complete": bench.strict_complete,
        }
        for n, schema in enumerate(asked)
    ]
    answers = engine.generate([prompt] * len(asked), samplings)
    requests = [
        {
            "schema": schemas.index(schema),
            "tokens": answer["meta_info"]["completion_tokens"],
            "finished": answer["meta_info"]["finish_reason"]["type"] == "stop",
            "valid": _is_valid(answer["text"], schema),
        }
        for answer, schema in zip(answers, asked, strict=True)
    ]
    finished = [request for request in requests if request["finished"]]
    num_valid = sum(request["valid"] for request in finished)
    summary = {
        "schemas_served_percent": 100 * len(served) / len(schemas),
        "finished_percent": 100 * len(finished) / len(asked),
        "valid_of_finished_percent": 100 * num_valid / max(1, len(finished)),
    }
    return summary, requests


def _is_served(engine: Any, schema: Any) -> bool:
    try:
        engine.check_grammar(JsonSchemaGrammar(json.dumps(schema)))
    except InvalidRequest:
        return False
    return True


def _is_valid(text: str, schema: Any) -> bool:
    try:
        validator_for(schema)(schema).validate(json.loads(text))
    except (ValueError, ValidationError):
        return False
    return True


def main(argv: list[str]) -> None:
    engine_config, bench = parse_command_line(
        argv, "python -m bench.structured", __doc__ or "", EngineConfig, StructuredBench
    )
    with jaxsgl.Engine(**dataclasses.asdict(engine_config)) as engine:
        summary = slow_down(engine, bench)
        requests: list[dict[str, Any]] = []
        if bench.schemas is not None:
            finished, requests = answers_under_schemas(engine, bench, Path(bench.schemas))
            summary |= finished
        model = engine.model
    show(summary)
    settings = dataclasses.asdict(bench) | {"model": model.name, "platform": model.platform}
    write_result(bench.output, "structured", settings, summary, requests)


if __name__ == "__main__":
    main(sys.argv[1:])
