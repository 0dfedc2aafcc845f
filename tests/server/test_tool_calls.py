"""Tools over HTTP: what the engine is asked for them, and how calls come back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jaxsgl.config import ServerConfig
from jaxsgl.interface import JsonSchemaGrammar
from tests.server.conftest import Served, serve
from tests.server.test_openai_routes import CHAT, chat

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "$defs": {"city": {"type": "string"}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zü"}}\n</tool_call>'
STRICT = [{"type": "function", "function": {**WEATHER["function"], "strict": True}}, CLOCK]  # pyright: ignore


def asking(text: str, **fields: Any) -> dict[str, Any]:
    """The fake engine says the prompt again, and ends at a line break after it."""
    fields = {"tools": TOOLS, "ignore_eos": not text.endswith("\n"), **fields}
    return chat(text, max_tokens=len(text.encode()), **fields)


async def message_of(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    status, reply = await served.post(CHAT, body)
    assert status == 200, reply
    return reply["choices"][0]["message"]


async def test_a_call(served: Served) -> None:
    status, reply = await served.post(CHAT, asking(CALL))
    (choice,) = reply["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    function = {"name": "weather", "arguments": '{"city": "Zü"}'}
    assert call == {"type": "function", "function": function}
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "length"  # the fake engine was cut short, to the byte
    assert status == 200


async def test_the_model_stopped_for_its_calls(served: Served) -> None:
    one_line = CALL.replace("\n", " ")
    for choice, reason in (("auto", "tool_calls"), (None, "tool_calls")):
        body = asking(one_line + "\n", tool_choice=choice)
        _, reply = await served.post(CHAT, body)
        assert reply["choices"][0]["finish_reason"] == reason
        events = [json.loads(e) for e in (await served.stream(CHAT, body))[:-1]]
        assert events[-1]["choices"][0]["finish_reason"] == reason


async def test_streamed_calls_join_to_the_same(served: Served) -> None:
    text = f"Hi. {CALL}\n{CALL}"
    whole = await message_of(served, asking(text))
    deltas = [
        choice["delta"]
        for event in (await served.stream(CHAT, asking(text)))[:-1]
        for choice in json.loads(event)["choices"]
    ]
    content = "".join(delta.get("content") or "" for delta in deltas)
    assert content == whole["content"] == "Hi."
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    for index, call in enumerate(whole["tool_calls"]):
        first, *others = [part for part in parts if part["index"] == index]
        assert first["function"] == {"name": "weather", "arguments": ""}
        assert first["id"] and first["type"] == "function"
        assert len(others) > 3 and all(part.keys() == {"index", "function"} for part in others)
        joined = "".join(part["function"]["arguments"] for part in others)
        assert joined == call["function"]["arguments"]


async def test_only_one_call_where_no_more_are_wanted(served: Served) -> None:
    message = await message_of(served, asking(CALL + CALL, parallel_tool_calls=False))
    assert len(message["tool_calls"]) == 1


async def test_no_tools_are_shown_or_read(served: Served) -> None:
    message = await message_of(served, asking(CALL, tool_choice="none"))
    assert message["content"] == CALL and "tool_calls" not in message
    assert served.engine.requests[0].prompt.tools is None


async def test_what_must_be_called_is_a_grammar(served: Served) -> None:
    text = '[{"name": "clock", "arguments": {}}]\n'
    _, reply = await served.post(CHAT, asking(text, tool_choice="required"))
    assert reply["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "clock"
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    grammar = served.engine.requests[0].sampling.grammar
    assert isinstance(grammar, JsonSchemaGrammar)
    schema = json.loads(grammar.schema)
    assert schema["minItems"] == 1 and "maxItems" not in schema
    city = schema["$defs"]["tool0"]["properties"]["city"]["$ref"]
    assert city == "#/$defs/tool0/$defs/city"
    assert schema["$defs"]["tool1"]["additionalProperties"] is False


async def test_a_named_tool(served: Served) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    _, reply = await served.post(CHAT, asking('{"city": "x"}\n', tool_choice=named))
    (choice,) = reply["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "x"}'}
    assert choice["finish_reason"] == "stop"


async def test_strict_tools_hold_calls_to_their_schemas(served: Served) -> None:
    assert (await served.post(CHAT, {**asking("x"), "tools": STRICT}))[0] == 200
    sampling = served.engine.requests[0].sampling
    assert (sampling.grammar_after, sampling.grammar_repeats) == ("<tool_call>", True)
    assert isinstance(sampling.grammar, JsonSchemaGrammar)
    clock = json.loads(sampling.grammar.schema)["anyOf"][1]["properties"]
    assert clock["arguments"] == {"type": "object"}


async def test_conversations_with_calls(served: Served) -> None:
    message = await message_of(served, asking(CALL))
    call_id = message["tool_calls"][0]["id"]
    bad = {"id": "b", "type": "function", "function": {"name": "f", "arguments": "{no"}}
    messages = [
        {"role": "user", "content": "?"},
        {
            **message,
            "tool_calls": [*message["tool_calls"], bad],
            "refusal": None,
            "annotations": [],
        },
        {"role": "tool", "tool_call_id": call_id, "content": [{"type": "text", "text": "rain"}]},
    ]
    assert (await served.post(CHAT, {"messages": messages, "tools": TOOLS}))[0] == 200
    _, assistant, result = served.engine.requests[-1].prompt.messages
    arguments = [call["function"]["arguments"] for call in assistant["tool_calls"]]
    assert arguments == [{"city": "Zü"}, "{no"]
    assert result == {"role": "tool", "content": "rain", "tool_call_id": call_id}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[...].type"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "a",
                        "tool_calls": [{"function": {"name": "f", "arguments": ""}}],
                    }
                ]
            },
            "messages[0].tool_calls",
        ),
    ],
)
async def test_refused(served: Served, fields: dict[str, Any], param: str) -> None:
    status, reply = await served.post(CHAT, {**chat("a"), **fields})
    assert status == 400 and reply["error"]["param"].startswith(param.partition("[")[0])
    assert served.engine.requests == []


async def test_strict_needs_marks_that_are_text() -> None:
    async with serve(ServerConfig(tool_call_parser="llama3")) as served:
        status, reply = await served.post(CHAT, chat("x", tools=STRICT))
        assert (status, reply["error"]["param"]) == (400, "tools")
        text = '{"name": "clock", "parameters": {}}'
        message = await message_of(served, asking(text))
        assert message["tool_calls"][0]["function"]["name"] == "clock"
        assert not served.engine.requests[-1].sampling.skip_special_tokens
