"""Patterns on the text of a JSON string, as automata over its written form."""

from __future__ import annotations

import re

from jaxsgl.grammar.codepoints import ALL, Ranges, complement, union
from jaxsgl.grammar.nfa import NfaBuilder
from jaxsgl.grammar.regex import PatternTranslator, parse_regex
from jaxsgl.grammar.sre import Parsed, op, sequence

_ESCAPED = {
    '"': '\\"',
    "\\": "\\\\",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\b": "\\b",
    "\f": "\\f",
}
_NOT_PLAIN: Ranges = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F))


def add_string_with(builder: NfaBuilder, pattern: str) -> None:
    """Add a terminal: a JSON string in whose text `pattern` is found, as JSON Schema means it.

    Characters that need no escape are written plainly, others in their short form; those that have
    none are left out. Raises GrammarError for patterns that are not supported.
    """
    parsed = parse_regex(pattern, re.ASCII)
    translator = PatternTranslator(
        builder, parsed.state.flags, whole_text=True, max_ahead_len=0, add_characters=_add_written
    )
    quote = ((ord('"'), ord('"')),)
    start = builder.add_characters(builder.begin_terminal(), quote)
    end = builder.add_state()
    for alternative in _alternatives(parsed):
        items = list(alternative)
        state = builder.add_state()
        builder.add_silent(start, state)
        if items and items[0] == (op.AT, op.AT_BEGINNING):
            items = items[1:]
        else:
            state = _add_anything(builder, state)
        ends = bool(items) and items[-1] == (op.AT, op.AT_END)
        body = sequence(parsed, items[:-1] if ends else items)
        state = translator.add_sequence(body, state)
        builder.add_silent(state if ends else _add_anything(builder, state), end)
    builder.end_terminal(builder.add_characters(end, quote))


def _alternatives(parsed: Parsed) -> list[Parsed]:
    if len(parsed) == 1 and parsed[0][0] is op.BRANCH:
        return parsed[0][1][1]
    return [parsed]


def _add_anything(builder: NfaBuilder, source: int) -> int:
    again = builder.add_state()
    builder.add_silent(source, again)
    builder.add_silent(_add_written(builder, again, ALL), again)
    return again


def _add_written(builder: NfaBuilder, source: int, ranges: Ranges) -> int:
    """Any one character of `ranges`, as a JSON string writes it."""
    target = builder.add_characters(source, _without(ranges, _NOT_PLAIN))
    backslash: int | None = None
    for character, written in _ESCAPED.items():
        if any(low <= ord(character) <= high for low, high in ranges):
            if backslash is None:
                backslash = builder.add_characters(source, ((0x5C, 0x5C),))
            code = ord(written[1])
            builder.add_silent(builder.add_characters(backslash, ((code, code),)), target)
    return target


def _without(ranges: Ranges, removed: Ranges) -> Ranges:
    return complement(union([*complement(ranges), *removed]))
