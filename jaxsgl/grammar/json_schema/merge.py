"""Schemas that must hold together, as one."""

from __future__ import annotations

from typing import Any

import msgspec

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.json_schema.document import ANNOTATIONS, Json, Schema, is_list

_LARGEST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_SMALLEST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_CLOSED = ("additionalProperties", "patternProperties", "unevaluatedProperties")


def merged(one: dict[str, Json], other: dict[str, Json]) -> dict[str, Json]:
    """What accepts the values that both accept. Raises GrammarError if that cannot be written."""
    result = {key: value for key, value in one.items() if key not in ANNOTATIONS}
    _check_properties(one, other)
    for key, value in other.items():
        if key in ANNOTATIONS:
            continue
        if key not in result or _same(result[key], value):
            result[key] = value
        else:
            result[key] = _joined(key, result[key], value)
    return result


def _joined(key: str, one: Any, other: Any) -> Json:
    if key in _LARGEST:
        return max(one, other)
    if key in _SMALLEST:
        return min(one, other)
    if key == "type":
        return _common_types(one, other)
    if key == "required":
        return list(dict.fromkeys([*one, *other]))
    if key == "properties":
        both = {name: both_of(one[name], other[name]) for name in one if name in other}
        return {**one, **other, **both}
    if key == "items":
        return both_of(one, other)
    if key == "enum":
        return [value for value in one if any(_same(value, each) for each in other)]
    raise GrammarError(f"two different {key!r} that must both hold are not supported")


def both_of(one: Schema, other: Schema) -> Schema:
    """A schema that asks for both; they are merged when it is translated."""
    if isinstance(one, bool):
        return other if one else False
    if isinstance(other, bool):
        return one if other else False
    return {"allOf": [one, other]}


def _check_properties(one: dict[str, Json], other: dict[str, Json]) -> None:
    """`additionalProperties` is about the properties beside it only."""
    for closed, wide in ((one, other), (other, one)):
        if any(closed.get(key, True) is not True for key in _CLOSED):
            unknown = wide.get("properties", {}).keys() - closed.get("properties", {}).keys()
            if unknown:
                raise GrammarError(
                    "additionalProperties with properties from another branch of allOf is not "
                    "supported"
                )


def _common_types(one: Any, other: Any) -> list[str]:
    left = one if is_list(one) else [one]
    right = other if is_list(other) else [other]
    common = [name for name in left if name in right]
    if "integer" not in common and (
        ("integer" in left and "number" in right) or ("number" in left and "integer" in right)
    ):
        common.append("integer")
    return common


def _same(one: Json, other: Json) -> bool:
    return canonical(one) == canonical(other)


def canonical(value: Json) -> bytes:
    """Equal for equal JSON, whatever the order of keys."""
    return msgspec.json.encode(value, order="deterministic")
