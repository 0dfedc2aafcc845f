"""Tools and restricted answers as a client meets them: SmolLM2 behind a real server."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
from openai import AsyncOpenAI

from tests.e2e.http_client import HttpClient
from tests.e2e.server_process import ServerProcess

CHAT = "/v1/chat/completions"
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/city"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Paris", "Rome"]}},
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "forecast", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
STRICT: Any = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
QUESTION: Any = [{"role": "user", "content": "What is the weather in Rome for 3 days?"}]


async def test_what_must_be_called_is_called_by_its_schema(server: ServerProcess) -> None:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
    ) as client:
        named: Any = {"type": "function", "function": {"name": "forecast"}}
        for choice, reason in (("required", "tool_calls"), (named, "stop")):
            for seed in range(3):
                reply = await client.chat.completions.create(
                    model="default", messages=QUESTION, tools=TOOLS, tool_choice=choice,
                    parallel_tool_calls=False, seed=seed, max_tokens=80,
                )  # fmt: skip
                message = reply.choices[0].message
                assert reply.choices[0].finish_reason == reason and message.content is None
                assert message.tool_calls and len(message.tool_calls) == 1
                function = message.tool_calls[0].function  # pyright: ignore
                arguments = json.loads(function.arguments)
                if function.name == "forecast":
                    jsonschema.validate(arguments, PARAMETERS)
                else:
                    assert (function.name, arguments) == ("now", {})


def example(city: str, days: int) -> list[dict[str, Any]]:
    arguments = json.dumps({"city": city, "days": days})
    function = {"name": "forecast", "arguments": arguments}
    return [
        {"role": "user", "content": f"What is the weather in {city} for {days} days?"},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]},
    ]


async def test_strict_tools_are_held_to_their_schema_where_they_are_called(
    client: HttpClient,
) -> None:
    """The model imitates the examples, and asks for a city and days that the schema forbids."""
    examples = [*example("Paris", 5), *example("Rome", 4), *example("Paris", 2)]
    question = {"role": "user", "content": "What is the weather in Oslo for 70 days?"}
    called: dict[bool, list[Any]] = {}
    for strict in (False, True):
        body = {
            "messages": [*examples, question],
            "tools": STRICT if strict else TOOLS[:1],
            "temperature": 0,
            "max_tokens": 60,
        }
        status, reply = await client.post(CHAT, body)
        assert status == 200, reply
        calls = reply["choices"][0]["message"]["tool_calls"]
        called[strict] = [json.loads(call["function"]["arguments"]) for call in calls]
    assert called[False] and not jsonschema.Draft202012Validator(PARAMETERS).is_valid(
        called[False][0]
    )
    assert called[True]
    for arguments in called[True]:
        jsonschema.validate(arguments, PARAMETERS)


async def test_restricted_tokens(client: HttpClient) -> None:
    body = {
        "messages": [{"role": "user", "content": "Count to ten."}],
        "max_tokens": 40,
        "temperature": 0,
    }
    _, free = await client.post(CHAT, body)
    text = free["choices"][0]["message"]["content"]
    words = [word for word in text.split() if word.isalpha()][:2]
    assert words
    _, reply = await client.post(CHAT, {**body, "bad_words": words})
    held = reply["choices"][0]["message"]["content"]
    assert held and not any(word in held for word in words)
    body = {"prompt": "1 2 3", "max_tokens": 6, "logprobs": 0, "allowed_token_ids": [33, 34]}
    _, reply = await client.post("/v1/completions", body)
    tokens = reply["choices"][0]["logprobs"]["tokens"]
    assert len(tokens) == 6 and len(set(tokens)) <= 2


async def test_scores_of_a_prompt_are_those_of_an_answer(client: HttpClient) -> None:
    """Echoed log-probabilities are what the same tokens had when they were drawn."""
    body = {"prompt": "The capital of France", "max_tokens": 8, "temperature": 0, "logprobs": 1}
    _, drawn = await client.post("/v1/completions", body)
    answer = drawn["choices"][0]
    whole = {
        "prompt": body["prompt"] + answer["text"],
        "max_tokens": 0,
        "echo": True,
        "logprobs": 1,
    }
    _, scored = await client.post("/v1/completions", whole)
    scores = scored["choices"][0]["logprobs"]
    assert scores["token_logprobs"][0] is None
    assert scores["tokens"][-8:] == answer["logprobs"]["tokens"]
    for one, other in zip(
        scores["token_logprobs"][-8:], answer["logprobs"]["token_logprobs"], strict=True
    ):
        assert abs(one - other) < 1e-3


async def test_messages_and_responses(client: HttpClient) -> None:
    turn = {"messages": QUESTION, "max_tokens": 12, "temperature": 0}
    _, message = await client.post("/v1/messages", turn)
    _, counted = await client.post("/v1/messages/count_tokens", {"messages": QUESTION})
    usage = message["usage"]
    prompt_len = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert prompt_len == counted["input_tokens"]
    body = {"input": QUESTION[0]["content"], "max_output_tokens": 12, "temperature": 0}
    _, response = await client.post("/v1/responses", body)
    text = response["output"][0]["content"][0]["text"]
    assert text == message["content"][0]["text"]
    _, again = await client.get(f"/v1/responses/{response['id']}")
    assert again == response
