"""Token masks: correctness against llguidance, and what they cost.

    python -m bench.token_mask --documents FILE [--tiktoken FILE] [--output FILE]

FILE of --documents has one JSON object a line with `schema` and `tests`, a list of
`{"valid": bool, "data": ...}` (the format of JSONSchemaBench and MaskBench). Without --tiktoken the
vocabulary is that of the default model; the wheel `llama-models` has Llama 3's 128,256 tokens in
`llama_models/llama3/tokenizer.model`.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from bench.results import write_result
from jaxsgl.grammar.compiled import CompiledGrammar, GrammarMemory
from jaxsgl.grammar.compiler import GrammarCompiler
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.llguidance_engine import LlguidanceTokens
from jaxsgl.grammar.vocabulary import Vocabulary
from jaxsgl.interface import JsonSchemaGrammar, LarkGrammar
from jaxsgl.loading.default_model import default_model_path
from jaxsgl.loading.gguf_file import read_gguf_header
from jaxsgl.tokenizer import load_tokenizer

GRAMMAR = r"""
?start: value
?value: object | array | STRING | NUMBER | "true" | "false" | "null"
array: "[" [value ("," value)*] "]"
object: "{" [pair ("," pair)*] "}"
pair: STRING ":" value
STRING: /"([^"\\\x00-\x1f]|\\(["\\\/bfnrt]|u[0-9a-fA-F]{4}))*"/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
%ignore /[ \t\n\r]+/
"""
# llguidance takes no ignored text before the first terminal or after the last.
PEER_GRAMMAR = GRAMMAR.replace("?start: value", "start: WS? value WS?").replace(
    r"%ignore /[ \t\n\r]+/", "WS: /[ \\t\\n\\r]+/\n%ignore WS"
)
LAYOUTS: tuple[dict[str, Any], ...] = ({}, {"separators": (",", ":")}, {"indent": 2})
MAX_TOKENS = 600
BATCH = 64


class Times(NamedTuple):
    """Seconds, one per call."""

    values: list[float]

    def summary(self) -> dict[str, float]:
        """Microseconds at several quantiles."""
        if not self.values:
            return {}
        quantiles = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
        micros = np.array(self.values) * 1e6
        return {name: round(float(np.percentile(micros, q)), 2) for name, q in quantiles.items()}


def load_vocabulary(tiktoken: Path | None) -> Vocabulary:
    if tiktoken is None:
        tokenizer = load_tokenizer(read_gguf_header(default_model_path()).metadata)
        return Vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids, tokenizer.vocab_size)
    ranks = [line.split() for line in tiktoken.read_text().splitlines() if line]
    size = len(ranks) + 256  # Control tokens follow the others.
    texts = [b""] * size
    for text, rank in ranks:
        texts[int(rank)] = base64.b64decode(text)
    return Vocabulary(texts, (size - 255, size - 247), size)


def encode_documents(cases: list[dict[str, Any]], vocabulary: Vocabulary) -> Iterator[list[int]]:
    documents = [each for case in cases for each in (case["schema"], *_data(case))]
    for index, document in enumerate(documents):
        text = json.dumps(document, ensure_ascii=False, **LAYOUTS[index % len(LAYOUTS)])
        yield vocabulary.spell(text.encode(errors="replace"))[:MAX_TOKENS]


def _data(case: dict[str, Any]) -> list[Any]:
    return [test["data"] for test in case["tests"]]


def against_llguidance(
    vocabulary: Vocabulary, cases: list[dict[str, Any]], max_masks: int
) -> dict[str, Any]:
    """Fill every mask along real documents with both engines and compare all bits.

    Masks made for the first time are measured in CPU time, which other programs do not disturb.
    """
    memory = GrammarMemory(vocabulary)
    compiler = GrammarCompiler(memory)
    start = time.perf_counter()
    grammar = compiler.compile(LarkGrammar(GRAMMAR))
    compile_s = time.perf_counter() - start
    tokenizer = LLTokenizer(
        TokenizerWrapper(LlguidanceTokens(vocabulary)),
        n_vocab=len(vocabulary.token_bytes),
        eos_token=list(vocabulary.eos_token_ids),
    )
    peer_start = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(PEER_GRAMMAR), log_level=0)
    own_row = np.zeros(vocabulary.row_len, dtype=np.uint32)
    peer_row = np.zeros_like(own_row)
    warm, cold, peer_times, advance = Times([]), Times([]), Times([]), Times([])
    num_masks = num_different = 0
    for tokens in encode_documents(cases, vocabulary):
        own, peer = grammar.matcher(), peer_start.deep_copy()
        for token in (*tokens, vocabulary.eos_token_ids[0]):
            known = memory.masks.num_keys
            began_cpu = time.thread_time()
            began = time.perf_counter()
            own.fill_mask(own_row)
            took = time.perf_counter() - began
            took_cpu = time.thread_time() - began_cpu
            if memory.masks.num_keys == known:
                warm.values.append(took)
            else:
                cold.values.append(took_cpu)
            began = time.perf_counter()
            peer.unsafe_compute_mask_ptr(peer_row.ctypes.data, peer_row.nbytes)
            peer_times.values.append(time.perf_counter() - began)
            num_masks += 1
            num_different += not np.array_equal(own_row, peer_row)
            began = time.perf_counter()
            taken = own.advance(token)
            advance.values.append(time.perf_counter() - began)
            if taken != peer.consume_token(token):
                raise AssertionError(f"the engines disagree about token {token}")
            if not taken:
                break
        if num_masks >= max_masks:
            break
    return {
        "compile_ms": round(compile_s * 1e3, 2),
        "masks": num_masks,
        "different": num_different,
        "cold_share": round(len(cold.values) / num_masks, 4),
        "warm_us": warm.summary(),
        "cold_cpu_us": cold.summary(),
        "llguidance_us": peer_times.summary(),
        "advance_us": advance.summary(),
        "memory_bytes": memory.num_bytes,
    }


def small_operations(vocabulary: Vocabulary, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Rollback, new matchers, and a batch of warm masks."""
    grammar = GrammarCompiler(GrammarMemory(vocabulary)).compile(LarkGrammar(GRAMMAR))
    documents = [tokens for tokens in encode_documents(cases, vocabulary) if len(tokens) > 60]
    rows = np.zeros((BATCH, vocabulary.row_len), dtype=np.uint32)
    rollback, new, fork, batch = Times([]), Times([]), Times([]), Times([])
    for _ in range(2):  # The second time every mask is known.
        matchers = [grammar.matcher() for _ in range(BATCH)]
        for step in range(50):
            began = time.perf_counter()
            for row, matcher in zip(rows, matchers, strict=True):
                matcher.fill_mask(row)
            batch.values.append(time.perf_counter() - began)
            for index, matcher in enumerate(matchers):
                token = documents[index % len(documents)][step]
                if matcher.advance(token):
                    rollback.values.append(_timed(lambda m=matcher: m.rollback(1)))
                    matcher.advance(token)
            new.values.append(_timed(grammar.matcher))
            fork.values.append(_timed(matchers[0].fork))
    return {
        "rollback_us": rollback.summary(),
        "new_matcher_us": new.summary(),
        "fork_us": fork.summary(),
        f"rows_{BATCH}_warm_us": Times(batch.values[50:]).summary(),
    }


def _timed(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def schemas(vocabulary: Vocabulary, cases: list[dict[str, Any]], backend: Any) -> dict[str, Any]:
    """Coverage and compile times of a JSON Schema backend."""
    compiler = GrammarCompiler(GrammarMemory(vocabulary), json_schema_backend=backend)
    row = np.zeros(vocabulary.row_len, dtype=np.uint32)
    first_mask = Times([])
    counts = dict.fromkeys(
        ("schemas", "compiled", "valid", "wrongly_refused", "invalid", "wrongly_accepted"), 0
    )
    refused: list[str] = []
    for case in cases:
        counts["schemas"] += 1
        began = time.perf_counter()
        try:
            grammar = compiler.compile(JsonSchemaGrammar(json.dumps(case["schema"])))
        except GrammarError as error:
            refused.append(f"{case['name']}: {error}")
            continue
        grammar.matcher().fill_mask(row)
        first_mask.values.append(time.perf_counter() - began)
        counts["compiled"] += 1
        for test in case["tests"]:
            counts["valid" if test["valid"] else "invalid"] += 1
            text = json.dumps(test["data"], ensure_ascii=False)
            taken = _takes(grammar, vocabulary.spell(text.encode(errors="replace")))
            counts["wrongly_refused"] += test["valid"] and not taken
            counts["wrongly_accepted"] += taken and not test["valid"]
    return {**counts, "compile_and_first_mask_us": first_mask.summary(), "refused": refused}


def _takes(grammar: CompiledGrammar, tokens: list[int]) -> bool:
    matcher = grammar.matcher()
    return all(matcher.advance(token) for token in tokens) and matcher.can_end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=Path, required=True, help="schemas with instances")
    parser.add_argument("--tiktoken", type=Path, help="a vocabulary of base64 texts and ranks")
    parser.add_argument("--max-masks", type=int, default=110_000, help="compared with llguidance")
    parser.add_argument("--output", help="file for the result, as JSON")
    args = parser.parse_args()
    cases = [json.loads(line) for line in args.documents.read_text().splitlines()]
    vocabulary = load_vocabulary(args.tiktoken)
    result = {
        "tokens": len(vocabulary.token_bytes),
        "json_grammar": against_llguidance(vocabulary, cases, args.max_masks),
        "operations": small_operations(vocabulary, cases),
        "schemas_llguidance": schemas(vocabulary, cases, "llguidance"),
        "schemas_lark": schemas(vocabulary, cases, "lark"),
    }
    print(json.dumps(result, indent=2))
    settings = {"max_masks": args.max_masks, "num_schemas": len(cases)}
    write_result(args.output, "token_mask", settings, result)


if __name__ == "__main__":
    main()
