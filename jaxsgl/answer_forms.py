"""The fields of requests that say what form an answer must have, in everybody's dialect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from jaxsgl.interface import (
    ChoiceGrammar,
    EbnfGrammar,
    GrammarSpec,
    InvalidRequest,
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
)


class _Format(Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """A `response_format`."""


class TextFormat(_Format, frozen=True, tag="text"):
    """Free text."""


class JsonObjectFormat(_Format, frozen=True, kw_only=True, tag="json_object"):
    schema: Raw | UnsetType = UNSET


class NamedSchema(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: Raw
    name: str | None = None
    """Like `description`, accepted and without effect: the model is not shown the schema."""
    description: str | None = None
    strict: bool | None = None
    """Without effect: every answer follows its schema."""


class JsonSchemaFormat(_Format, frozen=True, kw_only=True, tag="json_schema"):
    json_schema: NamedSchema


class GrammarFormat(_Format, frozen=True, kw_only=True, tag="grammar"):
    grammar: str
    syntax: Literal["lark", "ebnf"] = "lark"


class RegexFormat(_Format, frozen=True, kw_only=True, tag="regex"):
    pattern: str


class StructuredOutputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's field: one of these."""

    json: Raw | UnsetType = UNSET
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    """EBNF if it defines a rule with `::=`, else Lark."""


class GrammarFields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of request bodies, and of the offline engine's sampling parameters. At most one of them; null
    is the same as absent."""

    response_format: (
        TextFormat | JsonObjectFormat | JsonSchemaFormat | GrammarFormat | RegexFormat | None
    ) = None
    structured_outputs: StructuredOutputs | None = None
    json_schema: Raw | UnsetType = UNSET
    """A schema, or the text of one."""
    regex: str | None = None
    ebnf: str | None = None
    lark: str | None = None
    choice: list[str] | None = None


def grammar_of(fields: GrammarFields) -> GrammarSpec | None:
    """The grammar that was asked for. Raises InvalidRequest for more than one."""
    makers: dict[str, Callable[[], GrammarSpec | None]] = {
        "response_format": lambda: _of_format(fields),
        "structured_outputs": lambda: _of_structured_outputs(fields.structured_outputs),
        "json_schema": lambda: _of_schema(fields.json_schema),
        "regex": lambda: None if fields.regex is None else RegexGrammar(fields.regex),
        "ebnf": lambda: None if fields.ebnf is None else EbnfGrammar(fields.ebnf),
        "lark": lambda: None if fields.lark is None else LarkGrammar(fields.lark),
        "choice": lambda: _of_choice(fields.choice),
    }
    given = {param: grammar for param, make in makers.items() if (grammar := make()) is not None}
    if len(given) > 1:
        first, second, *_ = given
        raise InvalidRequest(f"{first} and {second} exclude each other", param=second)
    return next(iter(given.values()), None)


def _of_format(fields: GrammarFields) -> GrammarSpec | None:
    match fields.response_format:
        case JsonObjectFormat(schema=schema):
            return _of_schema(schema) or JsonObjectGrammar()
        case JsonSchemaFormat(json_schema=named):
            grammar = _of_schema(named.schema)
            if grammar is None:
                param = "response_format.json_schema.schema"
                raise InvalidRequest(f"{param} is required", param=param)
            return grammar
        case GrammarFormat(grammar=text, syntax=syntax):
            return LarkGrammar(text) if syntax == "lark" else EbnfGrammar(text)
        case RegexFormat(pattern=pattern):
            return RegexGrammar(pattern)
        case _:
            return None


def _of_structured_outputs(outputs: StructuredOutputs | None) -> GrammarSpec | None:
    if outputs is None:
        return None
    given: list[GrammarSpec | None] = [
        _of_schema(outputs.json),
        JsonObjectGrammar() if outputs.json_object else None,
        None if outputs.regex is None else RegexGrammar(outputs.regex),
        _of_choice(outputs.choice),
        None if outputs.grammar is None else _of_either(outputs.grammar),
    ]
    grammars = [grammar for grammar in given if grammar is not None]
    if len(grammars) != 1:
        message = "structured_outputs takes one of json, json_object, regex, choice and grammar"
        raise InvalidRequest(message, param="structured_outputs")
    return grammars[0]


def _of_either(text: str) -> GrammarSpec:
    return EbnfGrammar(text) if "::=" in text else LarkGrammar(text)


def _of_choice(choice: list[str] | None) -> GrammarSpec | None:
    return None if choice is None else ChoiceGrammar(tuple(choice))


def _of_schema(schema: Raw | UnsetType) -> JsonSchemaGrammar | None:
    """The schema's own text is kept: the order of its properties is that of the answer."""
    if schema is UNSET or bytes(schema) == b"null":
        return None
    data = bytes(schema)
    return JsonSchemaGrammar(
        msgspec.json.decode(data, type=str) if data.startswith(b'"') else data.decode()
    )
