"""JSON as a grammar, with bounded white space: a model that may write blanks without end will."""

from __future__ import annotations

from jaxsgl.grammar.json_schema.numbers import NUMBER

MAX_BLANKS = 20
"""White space characters between two tokens: enough for a line break and ten levels."""

_UNICODE_ESCAPE = (
    r"u(?:[0-9a-ceA-CEfF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}"
    r"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
CHARACTER = rf'(?:[^"\\\x00-\x1f\x7f]|\\(?:["\\/bfnrt]|{_UNICODE_ESCAPE}))'
"""One character of a JSON string. Escaped surrogates come in pairs only."""
STRING = f'"{CHARACTER}*"'

BLANKS = rf"[ \t\n\r]{{1,{MAX_BLANKS}}}"

JSON_OBJECT = rf"""
start: object
object: "{{" _blanks "}}" | "{{" _pair ("," _pair)* "}}"
_pair: _blanks STRING _blanks ":" _element
array: "[" _blanks "]" | "[" _element ("," _element)* "]"
_element: _blanks _value _blanks
_value: object | array | STRING | NUMBER | "true" | "false" | "null"
_blanks: BLANKS?
STRING: /{STRING.replace("/", chr(92) + "/")}/
NUMBER: /{NUMBER}/
BLANKS: /{BLANKS}/
"""
