"""The shapes of bodies and events, field by field, and what each request field becomes."""

from __future__ import annotations

import json

from jaxsgl.interface import ChatPrompt, SamplingParams, TextPrompt, TokenPrompt
from tests.server.conftest import Served

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(content: str, **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}], **fields}


async def test_whole_chat_answer(served: Served) -> None:
    status, body = await served.post(CHAT, chat("abc", max_tokens=5))
    assert status == 200
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 0
    assert body == {
        "object": "chat.completion",
        "model": "fake-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "abcab"},
                "logprobs": None,
                "finish_reason": "length",
                "matched_stop": None,
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 5,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
        "x-sglang-gpu-count": 1,
    }


async def test_streamed_chat_answer(served: Served) -> None:
    body = chat("abc", stop="ca", stream_options={"include_usage": True})
    events = await served.stream(CHAT, body)
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert len({(chunk.pop("id"), chunk.pop("created")) for chunk in chunks}) == 1
    head = {"object": "chat.completion.chunk", "model": "fake-model"}

    def chunk(delta: dict[str, str], finish: str | None = None, **more: str) -> dict[str, object]:
        choice = {"index": 0, "logprobs": None, "finish_reason": finish, "delta": delta, **more}
        return {**head, "choices": [choice]}

    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert chunks == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "a"}),
        chunk({"content": "b"}),
        chunk({}, "stop", matched_stop="ca", stop_reason="ca"),
        {**head, "choices": [], "usage": usage},
    ]


async def test_streamed_text_answer(served: Served) -> None:
    events = await served.stream(TEXT, {"prompt": "ab", "max_tokens": 2})
    assert events.pop() == "[DONE]"
    choices = [json.loads(event)["choices"] for event in events]
    nulls = {"logprobs": None, "matched_stop": None, "stop_reason": None}
    assert choices == [
        [{"index": 0, "text": "a", "finish_reason": None, **nulls}],
        [{"index": 0, "text": "b", "finish_reason": None, **nulls}],
        [{"index": 0, "text": "", "finish_reason": "length", **nulls}],
    ]


async def test_usage_in_every_event(served: Served) -> None:
    options = {"continuous_usage_stats": True}
    events = await served.stream(TEXT, {"prompt": "ab", "max_tokens": 2, "stream_options": options})
    usages = [json.loads(event).get("usage") for event in events[:2]]
    assert [usage["completion_tokens"] for usage in usages] == [1, 2]


async def test_streamed_choices_of_batch(served: Served) -> None:
    body = {"prompt": ["abc", "xy"], "n": 2, "seed": 0, "max_tokens": 4}
    events = await served.stream(TEXT, {**body, "stream_options": {"include_usage": True}})
    assert events.pop() == "[DONE]"
    usage = json.loads(events.pop())["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 16)
    texts, finishes = ["", "", "", ""], [0, 0, 0, 0]
    for event in events:
        (choice,) = json.loads(event)["choices"]
        texts[choice["index"]] += choice["text"]
        finishes[choice["index"]] += choice["finish_reason"] is not None
    assert texts == ["abca", "bcab", "xyxy", "yxyx"]
    assert finishes == [1, 1, 1, 1]
    _, whole = await served.post(TEXT, body)
    assert [choice["text"] for choice in whole["choices"]] == texts
    assert whole["usage"] == usage


async def test_every_sampling_field_reaches_the_engine(served: Served) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.05,
        "min_tokens": 2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "seed": 3,
        "ignore_eos": True,
    }
    shared = {"max_tokens": 9, "stop": ["x"], "stop_token_ids": [5], "logit_bias": {"65": -100}}
    expected = SamplingParams(
        **fields, max_tokens=9, stop=("x",), stop_token_ids=(5,), logit_bias={65: -100.0}
    )
    routing = {"priority": 4, "cache_salt": "mine"}
    assert (await served.post(TEXT, {"prompt": "ab", **fields, **shared, **routing}))[0] == 200
    newest = {**shared, "max_tokens": 1, "max_completion_tokens": 9}
    assert (await served.post(CHAT, chat("ab", **fields, **newest, **routing)))[0] == 200
    for request in served.engine.requests:
        assert request.sampling == expected
        assert (request.priority, request.cache_namespace) == (4, "mine")


async def test_defaults_are_those_of_openai(served: Served) -> None:
    nulls = dict.fromkeys(["temperature", "top_p", "stop", "seed", "n", "stream", "logit_bias"])
    await served.post(CHAT, chat("ab\n", **nulls))
    await served.post(TEXT, {"prompt": "ab"})
    chat_request, text_request = served.engine.requests
    assert chat_request.sampling == SamplingParams()
    assert text_request.sampling == SamplingParams(max_tokens=16)


async def test_prompts_of_every_kind(served: Served) -> None:
    for prompt in ("ab", [97, 98], ["ab"], [[97, 98]]):
        status, body = await served.post(TEXT, {"prompt": prompt, "max_tokens": 3})
        assert (status, body["choices"][0]["text"]) == (200, "aba")
    kinds = [request.prompt for request in served.engine.requests]
    assert kinds == [TextPrompt("ab"), TokenPrompt([97, 98])] * 2


async def test_messages_reach_the_template_as_plain_roles_and_texts(served: Served) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
        {"role": "user", "name": "ann", "content": "d\n"},
    ]
    assert (await served.post(CHAT, {"messages": messages}))[0] == 200
    assert served.engine.requests[0].prompt == ChatPrompt(
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "ab"},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d\n"},
        ]
    )


async def test_chat_logprobs_whole_and_streamed(served: Served) -> None:
    body = chat("é", max_tokens=2, logprobs=True, top_logprobs=2)
    _, whole = await served.post(CHAT, body)
    content = whole["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9]]
    assert content[1] == {
        "token": "\ufffd",
        "bytes": [0xA9],
        "logprob": -0.5,
        "top_logprobs": [
            {"token": "\ufffd", "bytes": [0xA9], "logprob": -0.5},
            {"token": "\ufffd", "bytes": [0xAA], "logprob": -1.5},
        ],
    }
    streamed: list[object] = []
    for event in (await served.stream(CHAT, body))[:-1]:
        logprobs = json.loads(event)["choices"][0]["logprobs"]
        streamed += logprobs["content"] if logprobs else []
    assert streamed == content


async def test_completion_logprobs_whole_and_streamed(served: Served) -> None:
    body = {"prompt": "éab", "max_tokens": 4, "logprobs": 1}
    _, whole = await served.post(TEXT, body)
    expected = {
        "tokens": ["bytes:\\xc3", "bytes:\\xa9", "a", "b"],
        "token_logprobs": [-0.5] * 4,
        "top_logprobs": [{"bytes:\\xc3": -0.5}, {"bytes:\\xa9": -0.5}, {"a": -0.5}, {"b": -0.5}],
        "text_offset": [0, 0, 1, 2],
    }
    assert whole["choices"][0]["logprobs"] == expected
    streamed: dict[str, list[object]] = {name: [] for name in expected}
    for event in (await served.stream(TEXT, body))[:-1]:
        for name, values in (json.loads(event)["choices"][0]["logprobs"] or {}).items():
            streamed[name] += values
    assert streamed == expected


async def test_models(served: Served) -> None:
    status, body = await served.get("/v1/models")
    (card,) = body["data"]
    assert (status, body["object"]) == (200, "list")
    assert card.pop("created") > 0
    assert card == {
        "id": "fake-model",
        "object": "model",
        "owned_by": "jaxsgl",
        "max_model_len": 64,
    }
    assert (await served.get("/v1/models/fake-model"))[1]["id"] == "fake-model"
    assert (await served.post(TEXT, {"prompt": "a", "model": "default"}))[0] == 200
    status, body = await served.get("/v1/models/other/model")
    assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_nothing_is_served_before_the_engine_is_ready(served: Served) -> None:
    served.engine.ready = False
    for path in (CHAT, TEXT):
        status, body = await served.post(path, {})
        assert (status, body["error"]["type"]) == (503, "server_error")
    assert (await served.get("/v1/models"))[0] == 503
