"""The official client, with strict validation of what it gets."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, Iterator

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from jaxsgl.config import ServerConfig
from jaxsgl.interface import EngineError, QueueFull
from tests.server.conftest import Served, serve

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "abc"}]


@pytest.fixture
async def client(served: Served) -> AsyncGenerator[openai.AsyncOpenAI, None]:
    async with openai.AsyncOpenAI(
        base_url=f"{served.url}/v1",
        api_key="none",
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


async def test_chat(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(
        model="fake-model", messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=2
    )
    (choice,) = reply.choices
    assert (choice.message.content, choice.finish_reason) == ("abcab", "length")
    assert choice.logprobs and choice.logprobs.content
    assert [entry.token for entry in choice.logprobs.content] == list("abcab")
    assert reply.usage and reply.usage.prompt_tokens_details
    assert reply.usage.prompt_tokens_details.cached_tokens == 1
    assert reply._request_id


async def test_embeddings(served: Served, client: openai.AsyncOpenAI) -> None:
    floats = await client.embeddings.create(
        model="fake-model", input=["abc", "xy"], encoding_format="float"
    )
    # What it asks for by itself is base64, which its own types do not know.
    lenient = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    async with lenient:
        packed = await lenient.embeddings.create(model="fake-model", input=["abc", "xy"])
    for index, prompt in enumerate((b"abc", b"xy")):
        values = (len(prompt), prompt[0], prompt[-1])
        expected = [value / math.hypot(*values) for value in values]
        assert floats.data[index].embedding == pytest.approx(expected)
        assert packed.data[index].embedding == pytest.approx(expected)
    assert floats.usage.prompt_tokens == packed.usage.total_tokens == 5
    short = await client.embeddings.create(
        model="fake-model", input=[97, 98], dimensions=2, encoding_format="float"
    )
    assert math.hypot(*short.data[0].embedding) == pytest.approx(1.0)
    with pytest.raises(openai.BadRequestError):
        await client.embeddings.create(
            model="fake-model", input="a", dimensions=4, encoding_format="float"
        )


async def test_streamed_chat(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="fake-model",
        messages=MESSAGES,
        stop=["ca"],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "ab"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage and chunks[-1].usage.total_tokens == 5


async def test_stream_helper(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model="fake-model", messages=MESSAGES, stop="ca"
    ) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "ab"


async def test_an_answer_can_be_sent_back(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(
        model="fake-model", messages=MESSAGES, max_tokens=5
    )
    message = reply.choices[0].message
    for sent_back in (message, message.model_dump()):
        again = await client.chat.completions.create(
            model="fake-model",
            messages=[*MESSAGES, sent_back, {"role": "user", "content": "xy"}],  # type: ignore[list-item]
            max_tokens=3,
        )
        assert again.choices[0].message.content == "xyx"


async def test_several_choices(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(
        model="fake-model", messages=MESSAGES, max_tokens=3, n=3, seed=0
    )
    assert [choice.message.content for choice in reply.choices] == ["abc", "bca", "cab"]
    assert reply.usage and (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 9)


async def test_completions(client: openai.AsyncOpenAI) -> None:
    reply = await client.completions.create(
        model="fake-model", prompt=["abc", "xy"], max_tokens=3, logprobs=1
    )
    assert [choice.text for choice in reply.choices] == ["abc", "xyx"]
    assert reply.choices[0].logprobs and reply.choices[0].logprobs.text_offset == [0, 1, 2]


async def test_streamed_completions(served: Served) -> None:
    # Not strictly validated: the types of this old route know no null finish_reason.
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        stream = await client.completions.create(
            model="fake-model", prompt=[97, 98], max_tokens=3, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "aba"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "length"]


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["fake-model"]
    assert (await client.models.retrieve("fake-model")).id == "fake-model"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")


async def test_errors_carry_their_body(served: Served, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature must be") as caught:
        await client.chat.completions.create(model="fake-model", messages=MESSAGES, temperature=3.0)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    served.engine.refusal = QueueFull("The queue is full")
    with pytest.raises(openai.RateLimitError, match="The queue is full"):
        await client.chat.completions.create(model="fake-model", messages=MESSAGES)


async def test_error_inside_a_stream(served: Served, client: openai.AsyncOpenAI) -> None:
    served.engine.break_after = (2, EngineError("numerical_error"))
    stream = await client.chat.completions.create(
        model="fake-model", messages=MESSAGES, stream=True
    )
    with pytest.raises(openai.APIError, match="numerical_error"):
        async for _ in stream:
            pass


async def test_sync_client(served: Served) -> None:
    def use() -> tuple[str | None, str]:
        with openai.OpenAI(
            base_url=f"{served.url}/v1",
            api_key="none",
            max_retries=0,
            _strict_response_validation=True,
        ) as client:
            whole = client.chat.completions.create(model="default", messages=MESSAGES, max_tokens=4)
            stream = client.chat.completions.create(
                model="default", messages=MESSAGES, max_tokens=4, stream=True
            )
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return whole.choices[0].message.content, streamed

    assert await asyncio.to_thread(use) == ("abca", "abca")


class Point(pydantic.BaseModel):
    x: int


WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "é"}}</tool_call>\n'


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


async def test_parse(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.parse(
        model="fake-model", messages=user('{"x": 4}\n'), response_format=Point
    )
    assert reply.choices[0].message.parsed == Point(x=4)
    async with client.chat.completions.stream(
        model="fake-model", messages=user('{"x": 5}\n'), response_format=Point
    ) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == Point(x=5)


async def test_tools(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(
        model="fake-model", messages=user("Hi " + CALL), tools=[WEATHER], max_tokens=200
    )
    (choice,) = reply.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Hi")
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.function.arguments == '{"city": "é"}'
    again = await client.chat.completions.create(
        model="fake-model",
        messages=[
            *user("?"),
            choice.message.model_dump(),  # pyright: ignore
            {"role": "tool", "tool_call_id": call.id, "content": "rain\n"},
        ],
        tools=[WEATHER],
    )
    assert again.choices[0].message.content == "rain"


async def test_streamed_tools_and_parsed_arguments(client: openai.AsyncOpenAI) -> None:
    tool = openai.pydantic_function_tool(Point, name="point")
    call = '<tool_call>{"name": "point", "arguments": {"x": 7}}</tool_call>'
    async with client.chat.completions.stream(
        model="fake-model", messages=user(call + call + "\n"), tools=[tool], max_tokens=200
    ) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    calls = final.choices[0].message.tool_calls
    assert calls and [call.function.parsed_arguments for call in calls] == [Point(x=7)] * 2
    assert final.choices[0].finish_reason == "tool_calls"


async def test_several_choices_with_logprobs(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(
        model="fake-model", messages=MESSAGES, n=3, seed=0, max_tokens=3, logprobs=True
    )
    assert [choice.message.content for choice in reply.choices] == ["abc", "bca", "cab"]
    assert all(choice.logprobs and choice.logprobs.content for choice in reply.choices)
    stream = await client.chat.completions.create(
        model="fake-model", messages=MESSAGES, n=3, seed=0, max_tokens=3, logprobs=True, stream=True
    )
    texts = ["", "", ""]
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["abc", "bca", "cab"]


async def test_echo_and_scores(served: Served) -> None:
    # Not strictly validated: the client's types do not know that a first token has no score.
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        reply = await client.completions.create(
            model="fake-model", prompt="abc", max_tokens=1, echo=True, logprobs=1, best_of=2
        )
    (choice,) = reply.choices
    assert choice.text[:3] == "abc" and len(choice.text) == 4
    assert choice.logprobs and choice.logprobs.text_offset == [0, 1, 2, 3]


@pytest.fixture
def served_in_a_thread() -> Iterator[str]:
    """The address of a server whose event loop runs beside the test."""
    loop, stop, up = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    urls: list[str] = []

    async def run() -> None:
        async with serve(ServerConfig()) as served:
            urls.append(served.url)
            up.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert up.wait(30)
    yield urls[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def test_sync_tools_and_parsing(served_in_a_thread: str) -> None:
    with openai.OpenAI(
        base_url=f"{served_in_a_thread}/v1",
        api_key="none",
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        parsed = client.chat.completions.parse(
            model="fake-model", messages=user('{"x": 4}\n'), response_format=Point
        )
        assert parsed.choices[0].message.parsed == Point(x=4)
        with client.chat.completions.stream(
            model="fake-model", messages=user(CALL), tools=[WEATHER], max_tokens=200
        ) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.tool_calls
        response = client.responses.create(model="fake-model", input="abc\n")
        assert response.output_text == "abc"
