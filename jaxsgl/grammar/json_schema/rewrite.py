"""Schemas rewritten so that an engine without negation can take them.

Only rewrites that accept exactly the same values are made. What has no such form stays, for the
engine to refuse.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.json_schema.document import (
    ANNOTATIONS,
    DICT_KEYS,
    LIST_KEYS,
    MAX_NESTING,
    SCHEMA_KEYS,
    Json,
    References,
    Schema,
    is_list,
    is_object,
    is_schema,
    read_schema,
)
from jaxsgl.grammar.json_schema.evaluate import Undecided, accepts
from jaxsgl.grammar.json_schema.formats import PATTERNS

_TYPES = ("null", "boolean", "object", "array", "number", "string")
_KNOWN_FORMATS = frozenset(PATTERNS)
_NEGATIVE = ("not", "dependencies", "dependentRequired", "dependentSchemas")


class RewrittenSchema(NamedTuple):
    schema: Schema
    warnings: tuple[str, ...]


class _NoPositiveForm(Exception):
    pass


def rewrite_schema(text: str) -> RewrittenSchema:
    """Parse and rewrite. Raises GrammarError for what is no schema, is nested too deeply, or has
    references that lead out of it or nowhere."""
    schema = read_schema(text)
    rewriter = _Rewriter(schema)
    return RewrittenSchema(rewriter.rewritten(schema), tuple(dict.fromkeys(rewriter.warnings)))


class _Rewriter:
    def __init__(self, root: Schema) -> None:
        self._references = References(root)
        self.warnings: list[str] = []

    def rewritten(self, schema: Schema) -> Schema:
        if isinstance(schema, bool):
            return schema
        self._check_reference(schema)
        schema = self._with_values_checked(schema)
        result: dict[str, Json] = {}
        for key, value in schema.items():
            if key == "x-guidance":
                self.warnings.append("keyword 'x-guidance' is ignored")
            elif key == "format" and value not in _KNOWN_FORMATS:
                self.warnings.append(f"format {value!r} is ignored")
            elif key not in _NEGATIVE:
                result[key] = self._inner(key, value)
        try:
            required = self._positive(schema)
        except _NoPositiveForm:
            kept = {key: schema[key] for key in _NEGATIVE if key in schema}
            return {**result, **kept}
        if required:
            result["allOf"] = [*result.get("allOf", []), *self._inner("allOf", required)]
        return self._with_exclusive_properties(result)

    def _check_reference(self, schema: dict[str, Json]) -> None:
        seen: list[Schema] = []
        target: Schema = schema
        while is_object(target) and "$ref" in target:
            if any(target is each for each in seen):
                raise GrammarError("a $ref leads only to itself")
            seen.append(target)
            target = self._references.resolve(target["$ref"])

    def _inner(self, key: str, value: Json) -> Json:
        if key in DICT_KEYS and is_object(value):
            return {name: self._if_schema(each) for name, each in value.items()}
        if key in LIST_KEYS and is_list(value):
            return [self._if_schema(each) for each in value]
        return self._if_schema(value) if key in SCHEMA_KEYS else value

    def _if_schema(self, value: Json) -> Json:
        return self.rewritten(value) if is_object(value) else value

    def _with_values_checked(self, schema: dict[str, Json]) -> dict[str, Json]:
        """Where the values are listed and something negative is asked of them, keep the values
        that have it and drop the asking."""
        values = _listed(schema)
        if values is None or not _has_negative(schema):
            return schema
        try:
            kept = [value for value in values if accepts(schema, value, self._references)]
        except Undecided:
            return schema
        annotations = {key: value for key, value in schema.items() if key in ANNOTATIONS}
        return {**annotations, "enum": kept} if kept else {"not": {}}

    def _positive(self, schema: dict[str, Json]) -> list[Schema]:
        """The negative keywords as schemas to be satisfied as well."""
        found: list[Schema] = []
        if "not" in schema:
            found.append(_negated(schema["not"]))
        for key in ("dependencies", "dependentRequired", "dependentSchemas"):
            named = schema.get(key, {})
            if not is_object(named):
                raise GrammarError(f"{key} is not an object")
            for name, needed in named.items():
                met: Schema = {"required": needed} if is_list(needed) else needed
                found.append({"anyOf": [{"properties": {name: False}}, met]})
        return found

    def _with_exclusive_properties(self, schema: dict[str, Json]) -> dict[str, Json]:
        """`oneOf` of branches that only ask for properties: a branch, and none of the others."""
        branches = schema.get("oneOf")
        if not is_list(branches) or len(branches) < 2 or "anyOf" in schema:
            return schema
        if schema.get("type") != "object":
            return schema
        if not all(
            is_object(each)
            and each.keys() <= ANNOTATIONS | {"required"}
            and len(each.get("required", ())) == 1
            for each in branches
        ):
            return schema
        names = [each["required"][0] for each in branches]
        if len(set(names)) < len(names):
            return schema
        rest = {key: value for key, value in schema.items() if key != "oneOf"}
        return {
            **rest,
            "anyOf": [
                {"required": [name], "properties": {n: False for n in names if n != name}}
                for name in names
            ],
        }


def _negated(schema: Json) -> Schema:
    """What accepts exactly the values that `schema` does not. Raises _NoPositiveForm."""
    if isinstance(schema, bool):
        return not schema
    asked = [(key, value) for key, value in schema.items() if key not in ANNOTATIONS]
    if not asked:
        return False
    if len(asked) == 1:
        key, value = asked[0]
        if key == "not" and is_schema(value):
            return value
        if key == "type":
            return {"type": _other_types(value)}
        if key == "anyOf" and is_list(value):
            return {"allOf": [_negated(each) for each in value]}
        if key == "allOf" and is_list(value):
            return {"anyOf": [_negated(each) for each in value]}
        if key == "required" and is_list(value) and value:
            lacking = [{"properties": {name: False}} for name in value]
            return {"type": "object", "anyOf": lacking}
    raise _NoPositiveForm


def _listed(schema: dict[str, Json]) -> list[Json] | None:
    """Values of which the schema accepts no others, if it lists them."""
    if is_list(schema.get("enum")):
        return schema["enum"]
    if "const" in schema:
        return [schema["const"]]
    inner = schema.get("allOf")
    for each in inner if is_list(inner) else ():
        values = _listed(each) if is_object(each) else None
        if values is not None:
            return values
    return None


def _has_negative(schema: Schema, depth: int = 0) -> bool:
    if isinstance(schema, bool) or depth > MAX_NESTING:
        return False
    inner = schema.get("allOf")
    return any(key in schema for key in _NEGATIVE) or any(
        _has_negative(each, depth + 1)
        for each in (inner if is_list(inner) else ())
        if is_object(each)
    )


def _other_types(names: Json) -> list[str]:
    """All types but these. Integers cannot be told from other numbers."""
    listed = names if is_list(names) else [names]
    if "integer" in listed and "number" not in listed:
        raise _NoPositiveForm
    return [name for name in _TYPES if name not in listed]
