"""JSON Schema through llguidance, behind the same contract as the project's own engine."""

from __future__ import annotations

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.json_grammar import MAX_BLANKS
from jaxsgl.grammar.json_schema.rewrite import rewrite_schema
from jaxsgl.grammar.vocabulary import Row, Vocabulary

GRAMMAR_BYTES = 64 << 10
BYTES_PER_CHARACTER = 200
"""Memory that a schema takes in llguidance, and more for each of its characters, about."""

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

    def compile(self, schema: str) -> LlguidanceGrammar:
        """Raises GrammarError, which names the keyword that is not supported."""
        rewritten = rewrite_schema(schema)
        if rewritten.schema is False:
            raise GrammarError("the schema accepts no value at all")
        text = "{}" if rewritten.schema is True else rewritten.text
        source = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _BLANKS})
        matcher = LLMatcher(self._tokenizer, source, log_level=0)
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        num_bytes = GRAMMAR_BYTES + BYTES_PER_CHARACTER * len(text)
        return LlguidanceGrammar(matcher, self._vocabulary, rewritten.warnings, num_bytes)


class LlguidanceGrammar:
    """See `CompiledGrammar`."""

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        warnings: tuple[str, ...],
        num_bytes: int,
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self.warnings = warnings
        self.num_bytes = num_bytes

    def matcher(self) -> LlguidanceMatcher:
        return LlguidanceMatcher(self._matcher.deep_copy(), self._vocabulary)


class LlguidanceMatcher:
    """See `Matcher`."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._num_taken = 0
        self._ended = False

    @property
    def error(self) -> str | None:
        return _first_line(self._matcher.get_error()) if self._matcher.is_error() else None

    @property
    def can_end(self) -> bool:
        return self._ended or (not self._matcher.is_error() and self._matcher.is_accepting())

    @property
    def finished(self) -> bool:
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())

    def fill_mask(self, row: Row) -> None:
        if not self._ended and not self._matcher.is_error():
            used_len = (len(self._vocabulary.token_bytes) + 31) // 32
            self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, used_len * row.itemsize)
            row[used_len:] = 0
        if self._ended or self._matcher.is_error():
            row[:] = self._vocabulary.ends

    def try_fill_mask(self, row: Row) -> bool:
        if self._ended or self._matcher.is_stopped():  # in error, too
            self.fill_mask(row)
            return True
        return False

    def advance(self, token_id: int) -> bool:
        if self._ended or self._matcher.is_error():
            return False
        if token_id in self._vocabulary.eos_token_ids:
            self._ended = self._matcher.is_accepting()
            self._num_taken += self._ended
            return self._ended
        if not 0 <= token_id < len(self._vocabulary.token_bytes):
            return False
        # A refused token would put the matcher into its error state for good.
        if self._matcher.validate_tokens([token_id]) != 1:
            return False
        self._num_taken += 1
        return self._matcher.consume_token(token_id)

    def rollback(self, num_tokens: int) -> None:
        if not 0 <= num_tokens <= self._num_taken:
            raise ValueError(f"cannot take back {num_tokens} of {self._num_taken} tokens")
        self._num_taken -= num_tokens
        if self._ended and num_tokens:
            self._ended = False
            num_tokens -= 1
        if num_tokens:
            self._matcher.rollback(num_tokens)

    def fork(self) -> LlguidanceMatcher:
        twin = LlguidanceMatcher(self._matcher.deep_copy(), self._vocabulary)
        twin._num_taken, twin._ended = self._num_taken, self._ended
        return twin

    def forced_bytes(self, max_len: int) -> bytes:
        if self._ended or self._matcher.is_error():
            return b""
        return self._matcher.compute_ff_bytes()[:max_len]


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
