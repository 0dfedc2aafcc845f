"""/v1/messages over HTTP; the fake engine says the last message again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jaxsgl.config import ServerConfig
from jaxsgl.interface import Unavailable
from tests.server.conftest import Served, serve

PATH = "/v1/messages"
CALL = '<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>'
TOOLS = [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]


def asking(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": len(text.encode()),
        **fields,
    }


async def stream(served: Served, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with served.session.post(served.url + PATH, json={**body, "stream": True}) as response:
        assert response.status == 200, await response.text()
        lines = (await response.text()).split("\n\n")
    assert lines.pop() == ""
    events: list[dict[str, Any]] = []
    for event in lines:
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content blocks that a stream adds up to."""
    blocks: list[dict[str, Any]] = []
    open_block = False
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert not open_block and event["index"] == len(blocks)
                open_block = True
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                assert open_block and event["index"] == len(blocks) - 1
                delta = event["delta"]
                match delta["type"]:
                    case "text_delta":
                        blocks[-1]["text"] += delta["text"]
                    case "thinking_delta":
                        blocks[-1]["thinking"] += delta["thinking"]
                    case "input_json_delta":
                        blocks[-1]["json"] += delta["partial_json"]
            case "content_block_stop":
                assert open_block
                open_block = False
    assert not open_block
    for block in blocks:
        text = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(text)
    return blocks


def without_ids(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in block.items() if key != "id"} for block in blocks]


async def test_an_answer(served: Served) -> None:
    status, reply = await served.post(PATH, asking("abc", system="s", temperature=0.5, top_k=3))
    assert status == 200
    assert reply.pop("id").startswith("msg")
    assert reply == {
        "type": "message",
        "role": "assistant",
        "model": "fake-model",
        "content": [{"type": "text", "text": "abc"}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 2,
            "output_tokens": 3,
            "cache_read_input_tokens": 1,
            "cache_creation_input_tokens": 0,
        },
    }
    (request,) = served.engine.requests
    assert request.prompt.messages[0] == {"role": "system", "content": "s"}
    assert (request.sampling.temperature, request.sampling.top_k) == (0.5, 3)


async def test_why_it_ended(served: Served) -> None:
    for text, fields, reason, sequence in (
        ("ab\n", {}, "end_turn", None),
        ("abc", {"stop_sequences": ["c"]}, "stop_sequence", "c"),
        (CALL + "\n", {"tools": TOOLS}, "tool_use", None),
    ):
        body = asking(text, **fields)
        _, reply = await served.post(PATH, body)
        assert (reply["stop_reason"], reply["stop_sequence"]) == (reason, sequence)
        end = (await stream(served, body))[-2]
        assert end["type"] == "message_delta"
        assert end["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
        assert end["usage"] == reply["usage"]


async def test_streamed_blocks_are_those_of_a_whole_answer() -> None:
    text = f"<think>hm</think>Hi é {CALL}{CALL}"
    async with serve(ServerConfig(reasoning_parser="qwen3")) as served:
        body = asking(text, tools=TOOLS)
        _, reply = await served.post(PATH, body)
        kinds = [block["type"] for block in reply["content"]]
        assert kinds == ["thinking", "text", "tool_use", "tool_use"]
        assert reply["content"][2]["input"] == {"a": "é"}
        events = await stream(served, body)
        assert without_ids(joined(events)) == without_ids(reply["content"])
        assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]
        assert events[0]["message"]["content"] == []


async def test_a_conversation_with_tools(served: Served) -> None:
    messages = [
        {"role": "user", "content": "?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": ""},
                {"type": "text", "text": "x"},
                {"type": "tool_use", "id": "i", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "i",
                    "content": [{"type": "text", "text": "r"}],
                },
                {"type": "text", "text": "go", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    body = {"messages": messages, "max_tokens": 2, "tools": TOOLS, "tool_choice": {"type": "any"}}
    assert (await served.post(PATH, body))[0] == 200
    (request,) = served.engine.requests
    call = {"id": "i", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert request.prompt.messages[1:] == [
        {"role": "assistant", "content": "x", "tool_calls": [call], "reasoning_content": "t"},
        {"role": "tool", "content": "r", "tool_call_id": "i"},
        {"role": "user", "content": "go"},
    ]
    assert request.sampling.grammar is not None


async def test_counting(served: Served) -> None:
    status, reply = await served.post(f"{PATH}/count_tokens", {"messages": asking("é")["messages"]})
    assert (status, reply) == (200, {"input_tokens": 2})
    assert served.engine.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"made_up": 1}, "made_up"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "i"}]}
                ]
            },
            "messages",
        ),
    ],
)
async def test_refusals_in_their_shape(served: Served, fields: dict[str, Any], param: str) -> None:
    status, reply = await served.post(PATH, {**asking("a"), **fields})
    assert (status, reply["type"]) == (400, "error")
    assert reply["error"]["type"] == "invalid_request_error"
    assert reply["error"]["param"].startswith(param)
    assert served.engine.requests == []


async def test_a_stream_that_breaks(served: Served) -> None:
    served.engine.break_after = (2, Unavailable("gone"))
    events = await stream(served, asking("abcdef"))
    assert events[-1]["type"] == "error" and events[-1]["error"]["message"] == "gone"
