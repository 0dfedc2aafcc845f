"""Fields that change how an answer is drawn, ended or shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jaxsgl.config import ServerConfig
from jaxsgl.interface import ChatPrompt, Delta, Finish, TokenLogprob, TokenPrompt, Usage
from server.completion_format import CompletionFormat
from server.replies import ReplyHead, UsageMeter
from tests.server.conftest import Served, serve
from tests.server.test_openai_routes import CHAT, TEXT, chat


async def test_echo(served: Served) -> None:
    for prompt in ("abc", [97, 98, 99], [[97, 98, 99]]):
        body = {"prompt": prompt, "max_tokens": 2, "echo": True, "n": 2, "seed": 0}
        status, reply = await served.post(TEXT, body)
        assert status == 200
        assert [choice["text"] for choice in reply["choices"]] == ["abcab", "abcbc"]
        assert all(choice["logprobs"] is None for choice in reply["choices"])
        events = await served.stream(TEXT, {**body, "n": 1})
        assert "".join(_texts(events)) == "abcab"


async def test_token_ids(served: Served) -> None:
    body = {"prompt": ["abc", "xy"], "max_tokens": 3, "n": 2, "seed": 0, "return_token_ids": True}
    _, reply = await served.post(TEXT, body)
    prompts = [list(b"abc"), list(b"xy")]
    for index, choice in enumerate(reply["choices"]):
        assert choice["prompt_token_ids"] == prompts[index // 2]
        assert bytes(choice["token_ids"]).decode() == choice["text"] and len(choice["text"]) == 3
    told = [[] for _ in reply["choices"]]
    events = await served.stream(TEXT, body)
    for choice in (json.loads(event)["choices"][0] for event in events[:-1]):
        ids = told[choice["index"]]
        assert ("prompt_token_ids" in choice) == (not ids)
        ids += choice.get("token_ids", [])
    assert told == [choice["token_ids"] for choice in reply["choices"]]
    _, reply = await served.post(TEXT, {"prompt": "abc"})
    assert not reply["choices"][0].keys() & {"token_ids", "prompt_token_ids"}


async def test_echo_with_logprobs(served: Served) -> None:
    body = {"prompt": "éb", "max_tokens": 2, "echo": True, "logprobs": 1}
    _, reply = await served.post(TEXT, body)
    (choice,) = reply["choices"]
    assert choice["text"] == "ébé"
    assert choice["logprobs"] == {
        "tokens": ["bytes:\\xc3", "bytes:\\xa9", "b", "bytes:\\xc3", "bytes:\\xa9"],
        "token_logprobs": [None, -0.25, -0.25, -0.5, -0.5],
        "top_logprobs": [
            None,
            {"bytes:\\xa9": -0.25},
            {"b": -0.25},
            {"bytes:\\xc3": -0.5},
            {"bytes:\\xa9": -0.5},
        ],
        "text_offset": [0, 0, 1, 2, 2],
    }
    events = await served.stream(TEXT, body)
    assert "".join(_texts(events)) == "ébé"


async def test_a_prompt_is_scored_without_an_answer(served: Served) -> None:
    body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}
    _, reply = await served.post(TEXT, body)
    (choice,) = reply["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25, -0.25]
    assert reply["usage"]["completion_tokens"] == 0
    assert reply["usage"]["total_tokens"] == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "n": 2, "stream": True}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
    ],
)
async def test_refused_completions(served: Served, fields: dict[str, Any], param: str) -> None:
    status, reply = await served.post(TEXT, {"prompt": "ab", **fields})
    assert (status, reply["error"]["param"]) == (400, param)


def test_best_of_keeps_the_likeliest() -> None:
    """Two prompts with three answers each; the sum of log-probabilities alone would mislead."""
    head = ReplyHead("id", 0, "m")
    kept = CompletionFormat(head, lambda t: bytes([t]), n=2, best_of=3, with_logprobs=False)
    likely = [[-1.0, -1.0, -1.0], [-2.0], [-0.5, -0.5], [-9.0], [-8.0], [-7.0]]
    for index, values in enumerate(likely):
        entries = [TokenLogprob(65 + index, value) for value in values]
        usage = Usage(1, len(values), 0)
        delta = Delta(chr(65 + index), [65] * len(values), usage, Finish("stop"), entries)
        kept.add(index, delta)
    body = kept.whole(UsageMeter(3).total()).decode()
    assert [body.count(f'"text":"{letter}"') for letter in "ABCDEF"] == [1, 0, 1, 0, 1, 1]
    assert body.index('"text":"C"') < body.index('"text":"A"') < body.index('"text":"F"')
    assert '"logprobs":null' in body and '"index":3' in body


async def test_best_of_counts_every_answer(served: Served) -> None:
    body = {"prompt": "abc", "max_tokens": 2, "best_of": 4, "n": 2, "seed": 0}
    _, reply = await served.post(TEXT, body)
    assert len(reply["choices"]) == 2
    assert reply["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 8,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert [request.sampling.logprobs for request in served.engine.requests] == [0] * 4


async def test_what_ended_an_answer(served: Served) -> None:
    for fields, matched, reason in (
        ({"stop": "c"}, "c", "c"),
        ({"stop_token_ids": [99]}, 99, 99),
        ({"stop_token_ids": [10], "ignore_eos": True}, 10, None),  # the end token itself
    ):
        body = {"prompt": "abc\n", "max_tokens": 9, **fields}
        (choice,) = (await served.post(TEXT, body))[1]["choices"]
        assert (choice["matched_stop"], choice["stop_reason"]) == (matched, reason)
        (choice,) = (await served.post(CHAT, chat("abc\n", max_tokens=9, **fields)))[1]["choices"]
        assert (choice["matched_stop"], choice["stop_reason"]) == (matched, reason)


async def test_fields_that_reach_the_engine(served: Served) -> None:
    fields = {
        "stop_regex": "x+",
        "no_stop_trim": True,
        "allowed_token_ids": [97, 98],
        "bad_words": ["zz"],
        "skip_special_tokens": False,
    }
    assert (await served.post(TEXT, {"prompt": "ab", **fields}))[0] == 200
    assert (await served.post(CHAT, chat("ab", **fields)))[0] == 200
    for request in served.engine.requests:
        sampling = request.sampling
        assert sampling.stop_regex == ("x+",) and sampling.include_stop
        assert sampling.allowed_token_ids == (97, 98) and sampling.bad_words == ("zz",)
        assert not sampling.skip_special_tokens


async def test_what_the_template_is_given(served: Served) -> None:
    body = chat(
        "ab",
        continue_final_message=True,
        chat_template_kwargs={"enable_thinking": True},
        reasoning_effort="none",
    )
    assert (await served.post(CHAT, body))[0] == 200
    (request,) = served.engine.requests
    assert request.prompt == ChatPrompt(
        [{"role": "user", "content": "ab"}],
        add_generation_prompt=False,
        continue_final_message=True,
        variables={"enable_thinking": True, "reasoning_effort": "none"},
    )
    both = chat("ab", continue_final_message=True, add_generation_prompt=True)
    status, reply = await served.post(CHAT, both)
    assert (status, reply["error"]["param"]) == (400, "add_generation_prompt")
    status, reply = await served.post(CHAT, chat("ab", chat_template_kwargs={"tools": []}))
    assert (status, reply["error"]["param"]) == (400, "chat_template_kwargs")


async def test_unknown_fields_can_be_ignored() -> None:
    body = chat("ab", made_up={"a": 1}, max_tokens=2)
    body["messages"][0]["weight"] = 1
    body["messages"].append({"role": "user", "content": "ab", "weight": 0})
    async with serve(ServerConfig(ignore_unknown_fields=True)) as served:
        status, reply = await served.post(CHAT, body)
        assert (status, reply["choices"][0]["message"]["content"]) == (200, "ab")
        status, reply = await served.post(CHAT, {**body, "temperature": "hot"})
        assert (status, reply["error"]["param"]) == (400, "temperature")
        many = {f"field{i}": 0 for i in range(70)}
        assert (await served.post(CHAT, chat("ab", **many)))[0] == 400
    async with serve(ServerConfig()) as served:
        assert (await served.post(CHAT, body))[0] == 400


async def test_reasoning_comes_apart() -> None:
    text = "<think>\nhm é\n</think>\n\nSo."
    async with serve(ServerConfig(reasoning_parser="qwen3")) as served:
        body = chat(text, max_tokens=len(text.encode()), ignore_eos=True)
        _, reply = await served.post(CHAT, body)
        message = reply["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("hm é", "So.")
        assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(
            "<think>\nhm é\n</think".encode()
        )
        (request,) = served.engine.requests
        assert request.prompt == TokenPrompt(
            list(body["messages"][0]["content"].encode()), "messages"
        )
        _, reply = await served.post(CHAT, {**body, "separate_reasoning": False})
        assert reply["choices"][0]["message"]["content"] == text
        assert "completion_tokens_details" not in reply["usage"]


@pytest.mark.parametrize(("prompt", "after"), [("x", "</think>"), ("x</think>\n\n", None)])
async def test_a_grammar_begins_behind_the_reasoning(prompt: str, after: str | None) -> None:
    async with serve(ServerConfig(reasoning_parser="deepseek-r1")) as served:
        assert (await served.post(CHAT, chat(prompt, regex="a+")))[0] == 200
        (request,) = served.engine.requests
        assert request.sampling.grammar_after == after
        assert not request.sampling.grammar_repeats


def _texts(events: list[str]) -> list[str]:
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    return [choice["text"] for chunk in chunks for choice in chunk["choices"]]
