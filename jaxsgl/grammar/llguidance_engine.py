"""JSON Schema through llguidance, behind the same contract as the project's own engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property

import msgspec
import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer, TokenizerWrapper

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.json_grammar import MAX_BLANKS
from jaxsgl.grammar.json_schema.document import Schema
from jaxsgl.grammar.json_schema.hints import SchemaHints, schema_hints
from jaxsgl.grammar.json_schema.negated_sets import with_negated_sets_split
from jaxsgl.grammar.json_schema.rewrite import rewrite_schema
from jaxsgl.grammar.vocabulary import Row, Vocabulary

GRAMMAR_BYTES = 64 << 10
BYTES_PER_CHARACTER = 200
"""Memory that a schema takes in llguidance, and more for each of its characters, about."""

MAX_THREADS = 4
"""That make the masks of one step."""

_BLANKS = rf"[ \t\n\r]{{0,{MAX_BLANKS}}}"


class LlguidanceEngine:
    """Compiles schemas within llguidance's own fuel limits; may run on several threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(LlguidanceTokens(vocabulary)),
            n_vocab=len(vocabulary.token_bytes),
            eos_token=list(vocabulary.eos_token_ids),
        )
        self._batch = LlguidanceBatch(vocabulary)

    def compile(self, schema: str) -> LlguidanceGrammar:
        """Raises GrammarError, which names the keyword that is not supported."""
        rewritten = rewrite_schema(schema)
        if rewritten.schema is False:
            raise GrammarError("the schema accepts no value at all")
        served = {} if rewritten.schema is True else with_negated_sets_split(rewritten.schema)
        text = msgspec.json.encode(served).decode()
        source = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _BLANKS})
        matcher = LLMatcher(self._tokenizer, source, log_level=0)
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        ways_out = WaysOut(rewritten.schema, self._vocabulary)
        first_mask = self._first_mask(matcher, ways_out)
        num_bytes = GRAMMAR_BYTES + BYTES_PER_CHARACTER * len(text)
        num_bytes += 0 if first_mask is None else first_mask.nbytes
        begun = LlguidanceMatcher(matcher, self._vocabulary, self._batch, ways_out, first_mask)
        return LlguidanceGrammar(begun, rewritten.warnings, num_bytes)

    def _first_mask(self, raw: LLMatcher, ways_out: WaysOut) -> Row | None:
        """The one that every answer begins with; None if there is something special about it."""
        row = np.zeros(self._vocabulary.row_len, dtype=np.uint32)
        matcher = LlguidanceMatcher(raw.deep_copy(), self._vocabulary, self._batch, ways_out)
        matcher.fill_mask(row)
        return None if matcher.error is not None or matcher.finished else row


class LlguidanceGrammar:
    """See `CompiledGrammar`."""

    def __init__(
        self,
        begun: LlguidanceMatcher,
        warnings: tuple[str, ...],
        num_bytes: int,
    ) -> None:
        """`begun` has taken nothing."""
        self._begun = begun
        self.warnings = warnings
        self.num_bytes = num_bytes

    @property
    def largest_part(self) -> bytes:
        return self._begun.ways_out.hints.largest_part

    def matcher(self) -> LlguidanceMatcher:
        return self._begun.fork()


class WaysOut:
    """Those of strings under a schema. They are read from it when they are first asked for."""

    def __init__(self, schema: Schema, vocabulary: Vocabulary) -> None:
        self._schema = schema
        self._vocabulary = vocabulary

    @cached_property
    def hints(self) -> SchemaHints:
        return schema_hints(self._schema)

    @cached_property
    def spelled(self) -> list[tuple[bytes, list[int]]]:
        """Texts, each a way out of somewhere, with tokens for them; the shortest first."""
        spelled = [(text, self._vocabulary.spell(text)) for text in self.hints.texts]
        return [(text, tokens) for text, tokens in spelled if tokens]


class LlguidanceMatcher:
    """See `Matcher`."""

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        batch: LlguidanceBatch,
        ways_out: WaysOut,
        first_mask: Row | None = None,
    ) -> None:
        """`first_mask` is that of the first token of all, if it is known."""
        self.batch = batch
        self.ways_out = ways_out
        self.raw = matcher
        self._vocabulary = vocabulary
        self._first_mask = first_mask
        self._num_taken = 0
        self._ended = False

    @property
    def error(self) -> str | None:
        return _first_line(self.raw.get_error()) if self.raw.is_error() else None

    @property
    def can_end(self) -> bool:
        return self._ended or (not self.raw.is_error() and self.raw.is_accepting())

    @property
    def finished(self) -> bool:
        return self._ended or (self.raw.is_stopped() and not self.raw.is_error())

    def fill_mask(self, row: Row) -> None:
        if not self._ended and not self.raw.is_error():
            used_len = (len(self._vocabulary.token_bytes) + 31) // 32
            self.raw.unsafe_compute_mask_ptr(row.ctypes.data, used_len * row.itemsize)
            row[used_len:] = 0
        if self._ended or self.raw.is_error():
            row[:] = self._vocabulary.ends

    def try_fill_mask(self, row: Row) -> bool:
        if self._ended or self.raw.is_stopped():  # in error, too
            self.fill_mask(row)
            return True
        if self._num_taken == 0 and self._first_mask is not None:
            row[:] = self._first_mask
            return True
        return False

    def advance(self, token_id: int) -> bool:
        if self._ended or self.raw.is_error():
            return False
        if token_id in self._vocabulary.eos_token_ids:
            self._ended = self.raw.is_accepting()
            self._num_taken += self._ended
            return self._ended
        if not 0 <= token_id < len(self._vocabulary.token_bytes):
            return False
        # A refused token would put the matcher into its error state for good.
        if self.raw.validate_tokens([token_id]) != 1:
            return False
        self._num_taken += 1
        return self.raw.consume_token(token_id)

    def rollback(self, num_tokens: int) -> None:
        if not 0 <= num_tokens <= self._num_taken:
            raise ValueError(f"cannot take back {num_tokens} of {self._num_taken} tokens")
        self._num_taken -= num_tokens
        if self._ended and num_tokens:
            self._ended = False
            num_tokens -= 1
        if num_tokens:
            self.raw.rollback(num_tokens)

    def fork(self) -> LlguidanceMatcher:
        raw = self.raw.deep_copy()
        twin = LlguidanceMatcher(raw, self._vocabulary, self.batch, self.ways_out, self._first_mask)
        twin._num_taken, twin._ended = self._num_taken, self._ended
        return twin

    def forced_bytes(self, max_len: int) -> bytes:
        if self._ended or self.raw.is_error():
            return b""
        return self.raw.compute_ff_bytes()[:max_len]

    def way_out(self) -> bytes | None:
        if self._ended or self.raw.is_error():
            return None
        for text, tokens in self.ways_out.spelled:
            if self.raw.validate_tokens(tokens) == len(tokens):
                return text
        return None


class LlguidanceBatch:
    """See `MaskBatch`. Python's lock is given up once for all matchers: to give it up for each
    means to wait for it as often, if another thread is busy for milliseconds at a time."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._executor = LLExecutor(num_threads=min(MAX_THREADS, os.cpu_count() or 1))

    def fill_masks(self, matchers: Sequence[LlguidanceMatcher]) -> Sequence[Row]:
        used_len = (len(self._vocabulary.token_bytes) + 31) // 32
        rows = np.zeros((len(matchers), self._vocabulary.row_len), dtype=np.uint32)
        made = rows if used_len == rows.shape[1] else rows[:, :used_len].copy()
        numbered = [(matcher.raw, n) for n, matcher in enumerate(matchers)]
        self._executor.unsafe_compute_mask_ptr(
            numbered, made.ctypes.data, used_len * made.itemsize, len(matchers)
        )
        if made is not rows:
            rows[:, :used_len] = made
        return list(rows)


class LlguidanceTokens:
    """The vocabulary as llguidance wants to see it. Control tokens need a name of their own, which
    begins with a byte that is in no text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        texts = vocabulary.token_bytes
        self.special_token_ids = [token for token, text in enumerate(texts) if not text]
        self.eos_token_id = vocabulary.eos_token_ids[0]
        self.bos_token_id = None
        self.tokens = [text or b"\xff<control %d>" % token for token, text in enumerate(texts)]
        self._longest_first = vocabulary.spell

    def __call__(self, text: bytes | str) -> list[int]:
        return self._longest_first(text.encode() if isinstance(text, str) else text)


def _first_line(message: str) -> str:
    """llguidance's complaint without the grammar that it appends."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0] if lines else "the schema was refused without a reason"
