"""What there is to say about a grammar: for people who write one and wonder."""

from __future__ import annotations

import time

import numpy as np

from jaxsgl.grammar.compiled import CompiledGrammar, TableGrammar
from jaxsgl.grammar.compiler import GrammarCompiler
from jaxsgl.grammar.matcher import Matcher
from jaxsgl.grammar.tables import GrammarTables
from jaxsgl.grammar.vocabulary import Vocabulary
from jaxsgl.interface import GrammarReport, GrammarSpec, TerminalReport

MAX_SHOWN_TOKENS = 100
MAX_FORCED_LEN = 256


def check_grammar(
    compiler: GrammarCompiler, vocabulary: Vocabulary, spec: GrammarSpec, prefix: bytes = b""
) -> GrammarReport:
    """Compile `spec` and follow `prefix`. Raises GrammarError if it cannot be compiled."""
    begin_s = time.perf_counter()
    return describe(compiler.compile(spec), vocabulary, prefix, begin_s)


def describe(
    grammar: CompiledGrammar, vocabulary: Vocabulary, prefix: bytes, begin_s: float
) -> GrammarReport:
    """The report on a compiled grammar. `begin_s`: when its compilation began, on
    `time.perf_counter`."""
    matcher = grammar.matcher()
    row = np.zeros(vocabulary.row_len, dtype=np.uint32)
    matcher.fill_mask(row)
    compile_ms = (time.perf_counter() - begin_s) * 1e3
    taken_len = _follow(matcher, vocabulary, prefix)
    matcher.fill_mask(row)
    allowed = vocabulary.tokens_in(row)
    tables = grammar.tables if isinstance(grammar, TableGrammar) else None
    return GrammarReport(
        engine="llguidance" if tables is None else "lark",
        compile_ms=compile_ms,
        terminals=[] if tables is None else _terminals(tables),
        conflicts=[] if tables is None else tables.conflicts,
        warnings=list(grammar.warnings),
        prefix_taken_len=taken_len,
        num_allowed_tokens=len(allowed),
        allowed_tokens=[
            (token, vocabulary.token_bytes[token]) for token in allowed[:MAX_SHOWN_TOKENS].tolist()
        ],
        can_end=matcher.can_end,
        forced=matcher.forced_bytes(MAX_FORCED_LEN),
        error=matcher.error,
    )


def _terminals(tables: GrammarTables) -> list[TerminalReport]:
    pairs = zip(tables.terminal_names, tables.terminal_patterns, strict=True)
    return [TerminalReport(name, pattern) for name, pattern in pairs]


def _follow(matcher: Matcher, vocabulary: Vocabulary, prefix: bytes) -> int:
    """Take as much of a text as fits; return how many bytes that is."""
    taken_len = 0
    for token in vocabulary.spell(prefix):
        text = vocabulary.token_bytes[token]
        if matcher.advance(token):
            taken_len += len(text)
            continue
        for byte in text:
            if not all(matcher.advance(each) for each in vocabulary.spell(bytes((byte,)))):
                return taken_len
            taken_len += 1
    return taken_len
