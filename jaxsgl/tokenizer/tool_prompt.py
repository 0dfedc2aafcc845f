"""Tools for chat templates: the form that a template asks calls in, and a text for those without
tools."""

from __future__ import annotations

import json
from typing import Any

_MARKS = {
    "[TOOL_CALLS]": "mistral",
    "<tool_call>": "hermes",
    "<|python_tag|>": "llama3",
    '"parameters": ': "llama3",
}
"""What a template writes before the calls of earlier turns, and the name of that form."""

_BEFORE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_AFTER = """
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def tool_format(template: str) -> str:
    """hermes, llama3 or mistral; hermes for a template that knows nothing of tools."""
    return next((name for mark, name in _MARKS.items() if mark in template), "hermes")


def with_tools_in_messages(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The messages with `tools` in a system message, and earlier calls and their results written as
    text, in Hermes' form (NousResearch, hermes-function-calling)."""
    declared = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = _BEFORE + declared + _AFTER
    rest = [_as_text(message) for message in messages]
    if rest and rest[0]["role"] == "system":
        text = f"{rest.pop(0)['content']}\n\n{text}"
    return [{"role": "system", "content": text}, *rest]


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content") or ""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = [
        json.dumps(
            {"name": call["function"]["name"], "arguments": call["function"]["arguments"]},
            ensure_ascii=False,
        )
        for call in calls
    ]
    parts = [content] if content else []
    parts += [f"<tool_call>\n{call}\n</tool_call>" for call in written]
    return {"role": message["role"], "content": "\n".join(parts)}
