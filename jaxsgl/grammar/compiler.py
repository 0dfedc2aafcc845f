"""The one way from a specification to something that makes masks."""

from __future__ import annotations

from typing import Literal, assert_never

from jaxsgl.grammar.compiled import CompiledGrammar, GrammarMemory, TableGrammar
from jaxsgl.grammar.ebnf import ebnf_tables
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.json_grammar import JSON_OBJECT
from jaxsgl.grammar.json_schema.translate import schema_tables
from jaxsgl.grammar.lark_tables import lark_tables
from jaxsgl.grammar.limits import DEFAULT_LIMITS, GrammarLimits
from jaxsgl.grammar.llguidance_engine import LlguidanceEngine
from jaxsgl.grammar.single_terminal import choice_tables, regex_tables
from jaxsgl.grammar.tables import GrammarTables
from jaxsgl.interface import (
    ChoiceGrammar,
    EbnfGrammar,
    GrammarSpec,
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
)

JsonSchemaBackend = Literal["llguidance", "lark"]


def compile_tables(spec: GrammarSpec, limits: GrammarLimits = DEFAULT_LIMITS) -> GrammarTables:
    """Compile for the project's own engine. Pure, so it can run in a process that may be killed.

    Raises GrammarError with one line for the author of the grammar.
    """
    _check_size(spec, limits)
    match spec:
        case LarkGrammar(text, start):
            return lark_tables(text, limits, start=start)
        case RegexGrammar(pattern):
            return regex_tables(pattern, limits)
        case ChoiceGrammar(choices):
            return choice_tables(choices, limits)
        case JsonObjectGrammar():
            return lark_tables(JSON_OBJECT, limits)
        case JsonSchemaGrammar(schema):
            return schema_tables(schema, limits)
        case EbnfGrammar(text, start):
            return ebnf_tables(text, start, limits)
    assert_never(spec)


class GrammarCompiler:
    """Makes grammars for one vocabulary. `compile` may run on several threads at once."""

    def __init__(
        self,
        memory: GrammarMemory,
        *,
        json_schema_backend: JsonSchemaBackend = "llguidance",
        limits: GrammarLimits = DEFAULT_LIMITS,
    ) -> None:
        self._memory = memory
        self._limits = limits
        self._llguidance = (
            LlguidanceEngine(memory.vocabulary) if json_schema_backend == "llguidance" else None
        )

    def makes_tables(self, spec: GrammarSpec) -> bool:
        """Whether `spec` is compiled by `compile_tables`, which another process may do for `load`;
        if not, only `compile` will do, which then ends within limits of its own."""
        return self._llguidance is None or not isinstance(spec, JsonSchemaGrammar)

    def load(self, tables: GrammarTables) -> CompiledGrammar:
        """Take over the result of `compile_tables`."""
        return TableGrammar(tables, self._memory, self._limits)

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Compile here and now. Raises GrammarError."""
        if self._llguidance is not None and isinstance(spec, JsonSchemaGrammar):
            _check_size(spec, self._limits)
            return self._llguidance.compile(spec.schema)
        return self.load(compile_tables(spec, self._limits))


def _check_size(spec: GrammarSpec, limits: GrammarLimits) -> None:
    match spec:
        case LarkGrammar(source) | RegexGrammar(source) | JsonSchemaGrammar(source):
            size = len(source)
        case EbnfGrammar(source):
            size = len(source)
        case ChoiceGrammar(choices):
            size = sum(map(len, choices))
        case JsonObjectGrammar():
            size = 0
    if size > limits.max_source_bytes:
        raise GrammarError(f"the grammar is longer than {limits.max_source_bytes} bytes")
