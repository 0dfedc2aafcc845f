"""/v1/responses through the openai client and over HTTP; the fake engine says the last message
again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from jaxsgl.config import ServerConfig
from jaxsgl.interface import ChatPrompt, EngineError, Unavailable
from server.messages import Message
from server.replies import ReplyHead
from server.response_store import Kept, ResponseStore
from server.responses_format import ResponsesFormat
from server.responses_routes import RESPONSES
from server.responses_schema import RESPONSES_DECODER
from tests.server.conftest import Served, serve

PATH = "/v1/responses"
CALL = '<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>'
TOOL: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}


def client(served: Served) -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
    )


async def ended(served: Served, response_id: str) -> str:
    """The status of a response once it is not in progress any more."""
    async with asyncio.timeout(20):
        while True:
            status = (await served.get(f"{PATH}/{response_id}"))[1]["status"]
            if status != "in_progress":
                return status


async def test_create_and_get(served: Served) -> None:
    async with client(served) as openai:
        made = await openai.responses.create(
            model="fake-model",
            input="abc",
            instructions="i",
            max_output_tokens=5,
            metadata={"a": "b"},
        )
        assert made.output_text == "abcab"
        assert made.incomplete_details and made.incomplete_details.reason == "max_output_tokens"
        assert made.status == "incomplete" and made.metadata == {"a": "b"}
        assert made.usage and made.usage.total_tokens == 8
        assert made.usage.input_tokens_details.cached_tokens == 1
        assert await openai.responses.retrieve(made.id) == made
    (request,) = served.engine.requests
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.messages == [
        {"role": "system", "content": "i"},
        {"role": "user", "content": "abc"},
    ]


async def test_a_stream_adds_up_to_the_response() -> None:
    text = f"<think>hm</think>Hi é {CALL}{CALL}\n"
    async with serve(ServerConfig(reasoning_parser="qwen3")) as served, client(served) as openai:
        events = [
            event
            async for event in await openai.responses.create(
                model="fake-model", input=text, tools=[TOOL], max_output_tokens=999, stream=True
            )
        ]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1]
        assert last.type == "response.completed"
        response = last.response
        kinds = [item.type for item in response.output]
        assert kinds == ["reasoning", "message", "function_call", "function_call"]
        for at, item in enumerate(response.output):
            own = [event for event in events if getattr(event, "output_index", None) == at]
            joined = "".join(event.delta for event in own if event.type.endswith(".delta"))  # pyright: ignore
            assert own[0].type == "response.output_item.added"
            assert own[-1].type == "response.output_item.done" and own[-1].item == item
            whole = item.arguments if item.type == "function_call" else item.content[0].text  # pyright: ignore
            assert joined == whole and whole in ("hm", "Hi é", '{"a": "é"}')
        assert await openai.responses.retrieve(response.id) == response
        usage = response.usage
        assert usage and usage.output_tokens_details.reasoning_tokens == len("<think>hm</think")


async def test_the_stream_helper_and_parsing(served: Served) -> None:
    class Point(BaseModel):
        x: int

    async with client(served) as openai:
        text = '{"x": 3}\n'
        async with openai.responses.stream(
            model="fake-model", input=text, text_format=Point
        ) as stream:
            final = await stream.get_final_response()
        assert final.output_parsed == Point(x=3)
        parsed = await openai.responses.parse(model="fake-model", input=text, text_format=Point)
        assert parsed.output_parsed == Point(x=3)
    schema = json.loads(served.engine.requests[0].sampling.grammar.schema)  # pyright: ignore
    assert schema["properties"]["x"]["type"] == "integer"


async def test_a_conversation_goes_on(served: Served) -> None:
    async with client(served) as openai:
        first = await openai.responses.create(
            model="fake-model", input=CALL + "\n", tools=[TOOL], instructions="forgotten"
        )
        (call,) = first.output
        assert call.type == "function_call"
        second = await openai.responses.create(
            model="fake-model",
            previous_response_id=first.id,
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain\n"}],
            instructions="new",
        )
        assert second.output_text == "rain"
    prompt = served.engine.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    function = {"name": "f", "arguments": {"a": "é"}}
    assert prompt.messages == [
        {"role": "system", "content": "new"},
        {"role": "user", "content": CALL + "\n"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "content": "rain\n", "tool_call_id": call.call_id},
    ]


async def test_answers_can_be_sent_back_as_input(served: Served) -> None:
    async with client(served) as openai:
        made = await openai.responses.create(model="fake-model", input=f"x {CALL}\n", tools=[TOOL])
        items: Any = [
            {"role": "user", "content": [{"type": "input_text", "text": "q"}], "type": "message"}
        ]
        items += [item.model_dump(exclude_none=True) for item in made.output]
        items.append({"type": "message", "role": "user", "content": "more\n"})
        again = await openai.responses.create(model="fake-model", input=items)
        assert again.output_text == "more"
    prompt = served.engine.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "user"]
    assert prompt.messages[1]["content"] == "x" and len(prompt.messages[1]["tool_calls"]) == 1


async def test_in_the_background(served: Served) -> None:
    served.engine.hold_after = 2
    async with client(served) as openai:
        made = await openai.responses.create(model="fake-model", input="abc\n", background=True)
        assert (made.status, made.output) == ("in_progress", [])
        await served.engine.held.wait()
        half = await openai.responses.retrieve(made.id)
        assert (half.status, half.output) == ("in_progress", [])
        served.engine.release.set()
        await served.engine.idle()
        await ended(served, made.id)
        whole = await openai.responses.retrieve(made.id)
        assert (whole.status, whole.output_text) == ("completed", "abc")
        assert await openai.responses.cancel(made.id) == whole


async def test_cancelling(served: Served) -> None:
    served.engine.hold_after = 2
    async with client(served) as openai:
        made = await openai.responses.create(model="fake-model", input="abc\n", background=True)
        await served.engine.held.wait()
        ended = await openai.responses.cancel(made.id)
        assert (ended.status, ended.output_text) == ("cancelled", "ab")
        assert served.engine.open == set()
        assert await openai.responses.retrieve(made.id) == ended


async def test_what_runs_in_the_background_ends_with_the_server() -> None:
    async with serve(ServerConfig()) as served:
        served.engine.hold_after = 1
        body = {"input": "abc", "background": True}
        assert (await served.post(PATH, body))[0] == 200
        await served.engine.held.wait()
    # The leak check of `serve` has passed.


async def test_failures(served: Served) -> None:
    store = served.runner.app[RESPONSES]
    served.engine.refusal = Unavailable("no")
    for fields in ({}, {"stream": True}):
        assert (await served.post(PATH, {"input": "abc", **fields}))[0] == 503
    assert len(store) == 0
    served.engine.refusal = None
    served.engine.break_after = (2, EngineError("broken"))
    made = (await served.post(PATH, {"input": "abcdef", "background": True}))[1]
    await served.engine.idle()
    assert await ended(served, made["id"]) == "failed"
    async with served.session.post(
        served.url + PATH, json={"input": "abcdef", "stream": True}
    ) as response:
        last = (await response.text()).strip().split("\n\n")[-1]
    failed = json.loads(last.split("data: ")[1])
    assert failed["type"] == "response.failed" and failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["message"] == "broken"
    assert failed["response"]["output"][0]["content"][0]["text"] == "ab"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"background": True, "stream": True}, "background"),
        ({"background": True, "store": False}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "content": []}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"truncation": "auto"}, "truncation"),
        ({"made_up": 1}, "made_up"),
    ],
)
async def test_refused(served: Served, fields: dict[str, Any], param: str) -> None:
    status, reply = await served.post(PATH, {"input": "a", **fields})
    assert status == 400 and reply["error"]["param"].startswith(param)
    assert served.engine.requests == []


async def test_what_is_not_kept_is_not_found(served: Served) -> None:
    _, made = await served.post(PATH, {"input": "a", "store": False})
    for method, path in (("GET", made["id"]), ("GET", "x"), ("POST", f"{made['id']}/cancel")):
        async with served.session.request(method, f"{served.url}{PATH}/{path}") as response:
            assert response.status == 404
    assert len(served.runner.app[RESPONSES]) == 0


def test_the_store_forgets_the_oldest_complete() -> None:
    store = ResponseStore(max_bytes=8000)
    body = RESPONSES_DECODER.decode(b'{"input":"x"}')
    running = ResponsesFormat(ReplyHead("running", 0, "m"), body, None)
    store.begin("running", Kept(lambda: running.response, []))
    for number in range(20):
        made = ResponsesFormat(ReplyHead(f"r{number}", 0, "m"), body, None, store.end)
        store.begin(
            f"r{number}",
            Kept(lambda made=made: made.response, [Message(role="user", content="é" * 500)]),
        )
        made.fail(EngineError("x"))
    assert store.get("running") and store.get("r19") and not store.get("r0")
    assert 2 < len(store) < 8
    for number in range(20):
        store.forget(f"r{number}")
    assert store._num_bytes.total() == 0


def test_nobody_drives_out_what_others_keep() -> None:
    store = ResponseStore(max_bytes=20_000)
    body = RESPONSES_DECODER.decode(b'{"input":"x"}')
    for number in range(50):
        tenant = "modest" if number < 2 else "greedy"
        name = f"{tenant}{number}"
        made = ResponsesFormat(ReplyHead(name, 0, "m"), body, None, store.end)
        store.begin(name, Kept(lambda made=made: made.response, [], tenant))
        made.fail(EngineError("x"))
    assert store.get("modest0", "modest") and store.get("modest1", "modest")
    assert store.get("greedy49", "greedy") and not store.get("greedy2", "greedy")
    assert len(store) > 4
