"""What a schema tells about short ways to the end of its values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from jaxsgl.grammar.endings import Endings
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.json_schema.document import (
    Json,
    References,
    Schema,
    is_list,
    is_object,
    is_schema,
    subschemas,
)
from jaxsgl.grammar.json_schema.formats import PATTERNS
from jaxsgl.grammar.json_schema.strings import add_string_with
from jaxsgl.grammar.nfa import NfaBuilder

MAX_NFA_STATES = 20_000
MAX_TEXTS = 300
MAX_TEXT_LEN = 4_096
MAX_DEPTH = 50
"""Beyond any of these nothing more is told."""

_STRING_END = re.compile(rb'(?:[^"\\]|\\.)*":?', re.DOTALL)
"""The rest of a string outside an escape. Read from within one it would not be the end."""


class SchemaHints(NamedTuple):
    texts: tuple[bytes, ...] = ()
    """Ends of strings, and names of members that must be there with the `":` behind them; the
    shortest first."""
    largest_part: bytes = b""
    """Of optional members and items, in their shortest forms, the longest: what a single token can
    oblige an answer to."""


def schema_hints(root: Schema) -> SchemaHints:
    """Read a schema that an engine has taken. Keywords that it ignores may say anything, so hints
    are guesses: whoever follows one must check where it leads."""
    try:
        return _read(root)
    except (TypeError, AttributeError, ValueError, OverflowError, RecursionError, GrammarError):
        return SchemaHints()


def _read(root: Schema) -> SchemaHints:
    schemas = list(_all_schemas(root))
    strings = {pattern: _string_endings(pattern) for pattern in _patterns(schemas)}
    texts = {b'"', *(text for endings in strings.values() for text in endings)}
    texts |= {_written(name)[1:] + b":" for schema in schemas for name in _required(schema)}
    least = _Least(References(root), strings)
    parts = [part for schema in schemas for part in _optional_parts(schema, least)]
    texts = {text for text in texts if _STRING_END.fullmatch(text)}
    return SchemaHints(
        tuple(sorted(texts, key=lambda text: (len(text), text))[:MAX_TEXTS]),
        max(parts, key=len, default=b""),
    )


def _all_schemas(root: Schema) -> Iterator[dict[str, Json]]:
    work = [root]
    for schema in work:
        if is_object(schema):
            yield schema
            work += subschemas(schema)


def _patterns(schemas: list[dict[str, Json]]) -> dict[str, None]:
    """What strings and names must match, in the order of the schema."""
    found: dict[str, None] = {}
    for schema in schemas:
        patterns = [_pattern(schema)]
        if is_object(schema.get("patternProperties")):
            patterns += schema["patternProperties"]
        found |= {pattern: None for pattern in patterns if isinstance(pattern, str)}
    return found


def _pattern(schema: dict[str, Json]) -> Json:
    """What the schema's strings must match, if anything: one of its conditions."""
    format_, least_len = schema.get("format"), schema.get("minLength")
    if isinstance(format_, str) and format_ in PATTERNS:
        return f"^(?:{PATTERNS[format_]})$"
    if "pattern" not in schema and least_len:
        return f"^.{{{int(least_len)},}}$"
    return schema.get("pattern")


def _string_endings(pattern: str) -> list[bytes]:
    """The shortest ways to the end of a JSON string with `pattern`, from wherever one may be in it;
    the last is a whole string."""
    builder = NfaBuilder(MAX_NFA_STATES)
    try:
        add_string_with(builder, pattern)
    except GrammarError:
        return [b'""']
    nfa = builder.finish()
    endings = Endings(nfa)
    return [*endings.all(), *(endings.of(nfa.starts) or [b'""'])]


def _required(schema: dict[str, Json]) -> list[str]:
    names = schema.get("required")
    return [name for name in names if isinstance(name, str)] if is_list(names) else []


def _optional_parts(schema: dict[str, Json], least: _Least) -> Iterator[bytes]:
    members = schema.get("properties")
    for name, value in members.items() if is_object(members) else ():
        if name not in _required(schema) and is_schema(value):
            yield b"," + _written(name) + b":" + least.text(value)
    for key in ("items", "additionalProperties"):
        if is_object(schema.get(key)):
            yield b"," + least.text(schema[key])


def _written(value: Json) -> bytes:
    return msgspec.json.encode(value)


class _Least:
    """Short values of schemas, if not always the shortest that are valid."""

    def __init__(self, references: References, strings: dict[str, list[bytes]]) -> None:
        self._references = references
        self._strings = strings
        self._texts: dict[int, bytes] = {}
        """By the identity of a schema; those under way are taken to be empty."""

    def text(self, schema: Schema, depth: int = 0) -> bytes:
        if not is_object(schema) or depth > MAX_DEPTH:
            return b"0"
        known = self._texts.get(id(schema))
        if known is None:
            self._texts[id(schema)] = b""
            known = self._texts[id(schema)] = self._make(schema, depth + 1)[:MAX_TEXT_LEN]
        return known

    def _make(self, schema: dict[str, Json], depth: int) -> bytes:
        listed = schema.get("enum", [schema["const"]] if "const" in schema else [])
        if is_list(listed) and listed:
            return min(map(_written, listed), key=len)
        needed = [self._own(schema, depth)]
        if "$ref" in schema:
            needed.append(self.text(self._references.resolve(schema["$ref"]), depth))
        for key, choose in (("allOf", max), ("anyOf", min), ("oneOf", min)):
            branches = schema.get(key)
            if is_list(branches) and branches:
                needed.append(choose((self.text(each, depth) for each in branches), key=len))
        return max(needed, key=len)

    def _own(self, schema: dict[str, Json], depth: int) -> bytes:
        types = schema.get("type", ())
        types = types if is_list(types) else [types]
        if any(each in types for each in ("null", "boolean", "integer", "number")):
            return b"0"
        if "string" in types:
            return self._strings.get(_pattern(schema), [b'""'])[-1]
        if "array" in types:
            return self._array(schema, depth)
        if "object" in types or "required" in schema:
            return self._object(schema, depth)
        return b"0"

    def _array(self, schema: dict[str, Json], depth: int) -> bytes:
        first = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        if is_list(rest):
            first, rest = rest, schema.get("additionalItems", True)
        length = min(int(schema.get("minItems", 0)), MAX_TEXT_LEN)
        items = [*first, *[rest] * (length - len(first))][:length]
        return b"[%b]" % b",".join(self.text(each, depth) for each in items)

    def _object(self, schema: dict[str, Json], depth: int) -> bytes:
        members = schema.get("properties")
        known = members if is_object(members) else {}
        return b"{%b}" % b",".join(
            _written(name) + b":" + self.text(known.get(name, True), depth)
            for name in _required(schema)
        )
