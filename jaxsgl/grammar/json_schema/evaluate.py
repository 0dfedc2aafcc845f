"""Whether a value satisfies a schema, for schemas that list their values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jaxsgl.grammar.json_schema.document import (
    ANNOTATIONS,
    Json,
    References,
    Schema,
    is_list,
    is_object,
)

MAX_DEPTH = 100

type _Inner = Callable[..., bool]
type _Check = Callable[[Json, Json, dict[str, Json], _Inner], bool]

_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: is_list(value),
    "object": lambda value: is_object(value),
    "number": lambda value: _is_number(value),
    "integer": lambda value: _is_number(value) and float(value).is_integer(),
}


class Undecided(Exception):
    """The schema uses what this evaluation does not know."""


def accepts(schema: Schema, value: Json, references: References) -> bool:
    """Raises Undecided, or GrammarError for references that lead nowhere."""
    try:
        return _accepts(schema, value, references, 0)
    except (TypeError, AttributeError, ArithmeticError, ValueError):
        raise Undecided("a keyword has a value of the wrong kind") from None


def _accepts(schema: Schema, value: Json, references: References, depth: int) -> bool:
    if isinstance(schema, bool):
        return schema
    if depth > MAX_DEPTH:
        raise Undecided("references do not end")

    def inner(sub: Schema, each: Json = value) -> bool:
        return _accepts(sub, each, references, depth + 1)

    for key, argument in schema.items():
        if key in ANNOTATIONS:
            continue
        check = _CHECKS.get(key)
        if key == "$ref":
            if not inner(references.resolve(argument)):
                return False
        elif check is None:
            raise Undecided(key)
        elif not check(argument, value, schema, inner):
            return False
    return True


def equal(one: Json, other: Json) -> bool:
    """JSON's equality: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if _is_number(one) and _is_number(other):
        return one == other
    if is_object(one) and is_object(other):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if is_list(one) and is_list(other):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _type(argument: Json, value: Json) -> bool:
    names = argument if is_list(argument) else [argument]
    if any(name not in _TYPES for name in names):
        raise Undecided("type")
    return any(_TYPES[name](value) for name in names)


def _limit(argument: Json) -> float:
    if isinstance(argument, bool):
        raise Undecided("a bound as in draft 4")
    return argument


def _dependencies(argument: Json, value: Json, inner: _Inner) -> bool:
    return all(
        all(each in value for each in needed) if is_list(needed) else inner(needed)
        for name, needed in argument.items()
        if name in value
    )


def _multiple_of(argument: Json, value: Json) -> bool:
    quotient = value / argument
    return math.isfinite(quotient) and abs(quotient - round(quotient)) < 1e-9


def _properties(argument: Json, value: Json, inner: _Inner) -> bool:
    return all(inner(sub, value[name]) for name, sub in argument.items() if name in value)


def _additional(argument: Json, value: Json, schema: dict[str, Json], inner: _Inner) -> bool:
    if "patternProperties" in schema:
        raise Undecided("patternProperties")
    named = schema.get("properties", {})
    return all(inner(argument, each) for name, each in value.items() if name not in named)


def _items(argument: Json, value: Json, schema: dict[str, Json], inner: _Inner) -> bool:
    if is_list(argument):
        return all(map(inner, argument, value))
    return all(inner(argument, each) for each in value[len(schema.get("prefixItems", ())) :])


def _on(kind: str, check: Callable[[Json, Any], bool]) -> _Check:
    """A keyword that concerns values of one type only."""
    return lambda argument, value, schema, inner: not _TYPES[kind](value) or check(argument, value)


_CHECKS: dict[str, _Check] = {
    "type": lambda argument, value, schema, inner: _type(argument, value),
    "enum": lambda argument, value, schema, inner: any(equal(each, value) for each in argument),
    "const": lambda argument, value, schema, inner: equal(argument, value),
    "allOf": lambda argument, value, schema, inner: all(map(inner, argument)),
    "anyOf": lambda argument, value, schema, inner: any(map(inner, argument)),
    "oneOf": lambda argument, value, schema, inner: sum(map(inner, argument)) == 1,
    "not": lambda argument, value, schema, inner: not inner(argument),
    "minimum": _on("number", lambda argument, value: value >= argument),
    "maximum": _on("number", lambda argument, value: value <= argument),
    "exclusiveMinimum": _on("number", lambda argument, value: value > _limit(argument)),
    "exclusiveMaximum": _on("number", lambda argument, value: value < _limit(argument)),
    "multipleOf": _on("number", _multiple_of),
    "minLength": _on("string", lambda argument, value: len(value) >= argument),
    "maxLength": _on("string", lambda argument, value: len(value) <= argument),
    "minItems": _on("array", lambda argument, value: len(value) >= argument),
    "maxItems": _on("array", lambda argument, value: len(value) <= argument),
    "minProperties": _on("object", lambda argument, value: len(value) >= argument),
    "maxProperties": _on("object", lambda argument, value: len(value) <= argument),
    "required": _on("object", lambda argument, value: all(name in value for name in argument)),
    "properties": lambda argument, value, schema, inner: (
        not is_object(value) or _properties(argument, value, inner)
    ),
    "additionalProperties": lambda argument, value, schema, inner: (
        not is_object(value) or _additional(argument, value, schema, inner)
    ),
    "dependencies": lambda argument, value, schema, inner: (
        not is_object(value) or _dependencies(argument, value, inner)
    ),
    "items": lambda argument, value, schema, inner: (
        not is_list(value) or _items(argument, value, schema, inner)
    ),
    "prefixItems": lambda argument, value, schema, inner: (
        not is_list(value) or all(map(inner, argument, value))
    ),
}
