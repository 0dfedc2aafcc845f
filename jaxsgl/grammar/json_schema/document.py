"""A schema as read, with what is needed to walk it."""

from __future__ import annotations

from typing import Any, TypeGuard

import msgspec

from jaxsgl.grammar.errors import GrammarError

type Json = Any
"""None, bool, int, float, str, list or dict."""
type Schema = dict[str, Json] | bool

SCHEMA_KEYS = frozenset(
    {
        "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not",
        "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
    }
)  # fmt: skip
"""Keywords whose value is a schema."""
LIST_KEYS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
"""Keywords whose value may be a list of schemas."""
DICT_KEYS = frozenset(
    {"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"}
)
"""Keywords whose value names schemas."""
ANNOTATIONS = frozenset(
    {
        "$comment", "$id", "$schema", "$anchor", "$defs", "$vocabulary", "contentEncoding",
        "contentMediaType", "default", "definitions", "deprecated", "description", "example",
        "examples", "id", "readOnly", "title", "writeOnly",
    }
)  # fmt: skip
"""Keywords that say nothing about which values are accepted."""

MAX_NESTING = 200


def is_object(value: Json) -> TypeGuard[dict[str, Json]]:
    return isinstance(value, dict)


def is_list(value: Json) -> TypeGuard[list[Json]]:
    return isinstance(value, list)


def is_schema(value: Json) -> TypeGuard[Schema]:
    return isinstance(value, dict | bool)


def read_schema(text: str) -> Schema:
    """Parse strictly; raises GrammarError."""
    try:
        schema = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise GrammarError(f"the schema is not JSON: {error}") from None
    except RecursionError:
        raise GrammarError(f"the schema is nested deeper than {MAX_NESTING} levels") from None
    if not is_schema(schema):
        raise GrammarError("a schema is an object, true or false")
    check_nesting(schema)
    return schema


def check_nesting(value: Json) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            child
            for each in level
            for child in (each.values() if is_object(each) else each if is_list(each) else ())
        ]
        if not level:
            return
    raise GrammarError(f"the schema is nested deeper than {MAX_NESTING} levels")


class References:
    """Where `$ref` leads. Nothing outside the document is ever fetched."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._by_id: dict[str, Schema] = {}
        if isinstance(root, dict):
            self._index(root)

    def _index(self, root: Schema) -> None:
        work: list[Schema] = [root]
        for schema in work:
            if not isinstance(schema, dict):
                continue
            for key, prefix in (("$id", ""), ("id", ""), ("$anchor", "#")):
                if isinstance(schema.get(key), str):
                    self._by_id.setdefault(prefix + schema[key].rstrip("#"), schema)
            work += subschemas(schema)

    def resolve(self, ref: Json) -> Schema:
        """Raises GrammarError for what is not in the document."""
        if not isinstance(ref, str):
            raise GrammarError("$ref is not a text")
        if ref in self._by_id:
            return self._by_id[ref]
        base, _, fragment = ref.partition("#")
        schema = self._by_id.get(base) if base else self._root
        if schema is None:
            raise GrammarError(f"$ref {ref!r} leads out of the schema; nothing is fetched")
        value: Json = schema
        for part in fragment.split("/")[1:] if fragment else ():
            key = _unescape(part)
            if is_object(value) and key in value:
                value = value[key]
            elif is_list(value) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                raise GrammarError(f"$ref {ref!r} leads nowhere")
        if not is_schema(value) or (fragment and not fragment.startswith("/")):
            raise GrammarError(f"$ref {ref!r} leads to no schema")
        return value


def subschemas(schema: dict[str, Json]) -> list[Schema]:
    """The schemas directly inside one."""
    found: list[Json] = []
    for key, value in schema.items():
        if key in DICT_KEYS and is_object(value):
            found += value.values()
        elif key in LIST_KEYS and is_list(value):
            found += value
        elif key in SCHEMA_KEYS:
            found.append(value)
    return [each for each in found if is_schema(each)]


def _unescape(part: str) -> str:
    text = part.replace("~1", "/").replace("~0", "~")
    for code in ("%25", "%22", "%20", "%24", "%7B", "%7D"):
        text = text.replace(code, chr(int(code[1:], 16)))
    return text
