"""What an answer must look like."""

from __future__ import annotations

import msgspec


class LarkGrammar(msgspec.Struct, frozen=True, tag="lark"):
    """The answer is a text of a grammar in Lark's language, read as Lark's LALR parser with its
    contextual lexer would."""

    text: str
    start: str = "start"


class RegexGrammar(msgspec.Struct, frozen=True, tag="regex"):
    """The whole answer matches a Python regular expression."""

    pattern: str


class ChoiceGrammar(msgspec.Struct, frozen=True, tag="choice"):
    """The answer is one of these texts."""

    choices: tuple[str, ...]


class JsonObjectGrammar(msgspec.Struct, frozen=True, tag="json_object"):
    """The answer is a JSON object."""


class JsonSchemaGrammar(msgspec.Struct, frozen=True, tag="json_schema"):
    """The answer is JSON that a schema accepts."""

    schema: str
    """As JSON text: the order of properties in it is the order in which they are generated."""


class EbnfGrammar(msgspec.Struct, frozen=True, tag="ebnf"):
    """The answer is a text of a grammar in the notation of llama.cpp and SGLang (GBNF)."""

    text: str
    start: str = "root"


GrammarSpec = (
    LarkGrammar | RegexGrammar | ChoiceGrammar | JsonObjectGrammar | JsonSchemaGrammar | EbnfGrammar
)
"""What an answer must look like."""


class TerminalReport(msgspec.Struct, frozen=True):
    name: str
    pattern: str


class GrammarReport(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to say about a grammar, and the state after a prefix."""

    engine: str
    """`lark`, the project's own, or `llguidance`, of which terminals and conflicts are unknown."""
    compile_ms: float
    """Up to and including the first mask."""
    terminals: list[TerminalReport]
    conflicts: list[str]
    """What an LALR(1) parser could not decide; all readings are followed."""
    warnings: list[str]
    """What of the grammar is ignored."""
    prefix_taken_len: int
    """Bytes of the prefix that the grammar takes; the rest describes the state after them."""
    num_allowed_tokens: int
    allowed_tokens: list[tuple[int, bytes]]
    """(id, bytes) of the first by id; those that end the answer have no bytes."""
    can_end: bool
    forced: bytes
    """What every continuation begins with."""
    error: str | None = None
