"""Calls written as Python."""

from __future__ import annotations

import ast
import json
from typing import Any

from server.tools.call_text import END, CallText, Reading

MAX_CALL_LEN = 1 << 16


def pythonic(text: CallText) -> Reading[None]:
    """`[f(a=1), g()]`, a list of calls with literals, as the whole answer: Llama 3.2 and 4."""
    first = yield from text.next_visible_after_content()
    if first != "[":
        yield from text.rest_is_content()
        return
    yield from text.next()
    read = "["
    while True:
        call, char = yield from _python_call(text)
        read += call + char
        parsed = _parse_python_call(call) if char in (",", "]") else None
        if parsed is None:
            if not text.num_calls:
                text.unread(read)
                yield from text.rest_is_content()
            return
        text.argue(text.begin_call(parsed[0]), parsed[1])
        if char == "]":
            break
    yield from text.rest_is_content()


def _python_call(text: CallText) -> Reading[tuple[str, str]]:
    """The text up to the comma or bracket that is in no bracket or string, and that character."""
    read, depth, quote = "", 0, ""
    while len(read) < MAX_CALL_LEN:
        char = yield from text.next()
        if char == END or (not depth and not quote and char in (",", "]")):
            return read, char
        read += char
        if quote:
            if char == "\\":
                read += yield from text.next()
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
    return read, END


def _parse_python_call(source: str) -> tuple[str, str] | None:
    """Name and arguments as JSON; None if it is no call with literals by name."""
    try:
        call = ast.parse(source.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        if not isinstance(call.func, ast.Name | ast.Attribute):
            return None
        values: dict[str, Any] = {}
        for keyword in call.keywords:
            if keyword.arg is None:
                return None
            values[keyword.arg] = ast.literal_eval(keyword.value)
        return ast.unparse(call.func), json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
