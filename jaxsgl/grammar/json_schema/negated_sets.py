"""Negated sets in the patterns of a schema, written so that llguidance takes what they mean.

Under a set such as `[^"]`, which leaves out a quote or a backslash but no control characters, it
takes these two wherever they are escaped. It does not if the set has no control characters, and an
alternative beside it has those that strings write as `\\n`, `\\r` or `\\t`; others are lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from jaxsgl.grammar.json_schema.document import (
    DICT_KEYS,
    LIST_KEYS,
    SCHEMA_KEYS,
    Json,
    Schema,
    is_list,
    is_object,
)

_ESCAPE_OR_SET = re.compile(r"\\.|\[(\^?)((?:\\.|[^\]\\])*)\]", re.DOTALL)
_SHORT_CONTROLS = (("\n", r"\n"), ("\r", r"\r"), ("\t", r"\t"))


def with_negated_sets_split(schema: Schema) -> Schema:
    return _with_patterns(schema, _split)


def _split(pattern: str) -> str:
    return _ESCAPE_OR_SET.sub(_split_set, pattern)


def _split_set(found: re.Match[str]) -> str:
    text, negation, members = found.group(0, 1, 2)
    if not negation:
        return text
    try:
        takes = re.compile(text).match
    except re.error:
        return text
    if takes('"') and takes("\\"):
        return text
    controls = "".join(written for control, written in _SHORT_CONTROLS if takes(control))
    plain = rf"[^\x00-\x1f{members}]"
    return f"(?:{plain}|[{controls}])" if controls else plain


def _with_patterns(schema: Json, change: Callable[[str], str]) -> Json:
    """The schema with another text for every pattern in it."""
    if not is_object(schema):
        return schema
    result: dict[str, Json] = {}
    for key, value in schema.items():
        if key == "pattern" and isinstance(value, str):
            result[key] = change(value)
        elif key in DICT_KEYS and is_object(value):
            rename = change if key == "patternProperties" else str
            result[key] = {
                rename(name): _with_patterns(each, change) for name, each in value.items()
            }
        elif key in LIST_KEYS and is_list(value):
            result[key] = [_with_patterns(each, change) for each in value]
        elif key in SCHEMA_KEYS:
            result[key] = _with_patterns(value, change)
        else:
            result[key] = value
    return result
