"""/generate: what each field becomes, and the shapes of answers and events."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from jaxsgl.interface import RegexGrammar, SamplingParams, TextPrompt, TokenPrompt
from tests.server.conftest import Served

GENERATE = "/generate"


def meta(body: dict[str, Any]) -> dict[str, Any]:
    """`meta_info` without what differs from run to run."""
    info = body["meta_info"]
    assert info.pop("e2e_latency") >= 0
    assert info.pop("id")
    return info


async def test_whole_answer(served: Served) -> None:
    status, body = await served.post(
        GENERATE, {"text": "abc", "sampling_params": {"max_new_tokens": 5}}
    )
    assert status == 200
    assert meta(body) == {
        "finish_reason": {"type": "length", "length": 5},
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "cached_tokens": 1,
        "weight_version": "default",
    }
    del body["meta_info"]
    assert body == {"text": "abcab", "output_ids": [*b"abcab"], "x-sglang-gpu-count": 1}
    (request,) = served.engine.requests
    assert request.prompt == TextPrompt("abc")
    assert request.sampling == SamplingParams(max_tokens=5)


async def test_no_new_tokens_commit_the_prompt(served: Served) -> None:
    body = {"input_ids": [*b"abc"], "sampling_params": {"max_new_tokens": 0}}
    status, reply = await served.post(GENERATE, body)
    assert (status, reply["text"], reply["output_ids"]) == (200, "", [])
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 0}
    assert served.engine.requests[-1].hold_s is None
    assert (await served.post(GENERATE, {**body, "hold_s": 30}))[0] == 200
    assert served.engine.requests[-1].hold_s == 30


@pytest.mark.parametrize("hold_s", [0, -1, 601, "long"])
async def test_a_time_to_hold_that_makes_no_sense(served: Served, hold_s: object) -> None:
    body = {"text": "abc", "sampling_params": {"max_new_tokens": 0}, "hold_s": hold_s}
    status, reply = await served.post(GENERATE, body)
    assert (status, reply["error"]["param"]) == (400, "hold_s")


async def test_an_answer_is_not_held(served: Served) -> None:
    status, reply = await served.post(GENERATE, {"text": "abc", "hold_s": 5})
    assert (status, reply["error"]["param"]) == (400, "hold_s")
    assert "needs 0 new tokens" in reply["error"]["message"]
    assert not served.engine.requests


async def test_every_sampling_field(served: Served) -> None:
    fields = {
        "max_new_tokens": 9,
        "min_new_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": 1.5},
        "sampling_seed": 11,
        "stop": ["zz"],
        "stop_token_ids": [3],
        "ignore_eos": True,
        "regex": "a+",
        "strict_complete": True,
        "spaces_between_special_tokens": True,
    }
    body = {
        "text": "abc",
        "sampling_params": fields,
        "priority": 3,
        "cache_salt": "s",
        "timeout_s": 5,
        "rid": "mine",
    }
    assert (await served.post(GENERATE, body))[0] == 200
    (request,) = served.engine.requests
    assert (request.request_id, request.priority) == ("mine", 3)
    assert (request.cache_namespace, request.timeout_s) == ("s", 5)
    assert request.sampling == SamplingParams(
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        logit_bias={5: 1.5},
        seed=11,
        stop=("zz",),
        stop_token_ids=(3,),
        ignore_eos=True,
        grammar=RegexGrammar("a+"),
        strict_complete=True,
    )


async def test_batch_with_parameters_of_their_own(served: Served) -> None:
    body = {
        "text": ["ab", "cd"],
        "sampling_params": [
            {"max_new_tokens": 1},
            {"max_new_tokens": 2, "n": 2, "sampling_seed": 0},
        ],
        "rid": ["x", "y"],
    }
    status, replies = await served.post(GENERATE, body)
    assert status == 200
    assert [(r["meta_info"]["id"], r["text"]) for r in replies] == [
        ("x", "a"),
        ("y-0", "cd"),
        ("y-1", "dc"),
    ]
    status, replies = await served.post(GENERATE, {"input_ids": [[97], [98]], "rid": "z"})
    assert [r["meta_info"]["id"] for r in replies] == ["z-0", "z-1"]
    status, replies = await served.post(GENERATE, {"text": ["ab"]})
    assert isinstance(replies, list)


@pytest.mark.parametrize("stream", [False, True])
async def test_scores_of_a_long_prompt_are_written_beside_the_loop(
    served: Served, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    writers: dict[int, set[threading.Thread]] = {}

    def token_bytes(token_id: int) -> bytes:
        writers.setdefault(token_id, set()).add(threading.current_thread())
        return bytes([token_id])

    monkeypatch.setattr(served.engine, "token_bytes", token_bytes)
    for prompt, is_beside in (("y" * 600, True), ("z" * 6, False)):
        body = {
            "text": prompt,
            "sampling_params": {"max_new_tokens": 1},
            "return_logprob": True,
            "logprob_start_len": 0,
            "return_text_in_logprobs": True,
        }
        if stream:
            reply = json.loads((await served.stream(GENERATE, body))[-2])
        else:
            _, reply = await served.post(GENERATE, body)
        assert len(reply["meta_info"]["input_token_logprobs"]) == len(prompt)
        assert (threading.main_thread() not in writers.pop(ord(prompt[0]))) == is_beside


async def test_logprobs(served: Served) -> None:
    body = {
        "text": "abc",
        "sampling_params": {"max_new_tokens": 2},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 2,
        "return_text_in_logprobs": True,
    }
    _, reply = await served.post(GENERATE, body)
    info = meta(reply)
    assert info["input_token_logprobs"] == [
        [None, 97, "a"],
        [-0.25, 98, "b"],
        [-0.25, 99, "c"],
    ]
    assert info["input_top_logprobs"] == [
        None,
        [[-0.25, 98, "b"], [-1.25, 99, "c"]],
        [[-0.25, 99, "c"], [-1.25, 100, "d"]],
    ]
    assert info["output_token_logprobs"] == [[-0.5, 97, "a"], [-0.5, 98, "b"]]
    assert info["output_top_logprobs"][0] == [[-0.5, 97, "a"], [-1.5, 98, "b"]]
    (request,) = served.engine.requests
    assert request.prompt == TokenPrompt([*b"abc"])

    del body["top_logprobs_num"], body["return_text_in_logprobs"]
    _, reply = await served.post(GENERATE, {**body, "logprob_start_len": 2})
    info = meta(reply)
    assert info["input_token_logprobs"] == [[-0.25, 99, None]]
    assert "input_top_logprobs" not in info
    assert served.engine.requests[-1].sampling.prompt_logprobs_from == 2

    _, reply = await served.post(GENERATE, {"text": "abc", "return_logprob": True})
    assert meta(reply)["input_token_logprobs"] == []
    assert not served.engine.requests[-1].sampling.prompt_logprobs


async def test_events_hold_the_answer_so_far(served: Served) -> None:
    body = {"text": "abc", "sampling_params": {"max_new_tokens": 3}, "return_logprob": True}
    *events, last = await served.stream(GENERATE, body)
    assert last == "[DONE]"
    replies = [json.loads(event) for event in events]
    assert [reply["text"] for reply in replies] == ["a", "ab", "abc"]
    assert [len(r["meta_info"]["output_token_logprobs"]) for r in replies] == [1, 2, 3]
    finishes = [reply["meta_info"]["finish_reason"] for reply in replies]
    assert finishes == [None, None, {"type": "length", "length": 3}]
    assert all("index" not in reply for reply in replies)
    events = await served.stream(GENERATE, {**body, "text": ["ab", "cd"]})
    last_texts = {r["index"]: r["text"] for r in map(json.loads, events[:-1])}
    assert last_texts == {0: "aba", 1: "cdc"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": []}, "text"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [1, [2]]}, "input_ids"),
        ({"input_ids": [-1]}, "input_ids[0]"),
        ({"text": "a", "sampling_params": [{}, {}]}, "sampling_params"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
        ({"text": "a", "sampling_params": {"n": 129}}, "sampling_params.n"),
        ({"text": ["a"] * 100, "sampling_params": {"n": 2}}, "n"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "temperature"),
        (
            {"text": "a", "sampling_params": {"max_new_tokens": -1}},
            "sampling_params.max_new_tokens",
        ),
        ({"text": "a", "sampling_params": {"logit_bias": {"256": 1}}}, "logit_bias"),
        ({"text": "a", "cache_salt": "x", "extra_key": "y"}, "extra_key"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": 2}, "logprob_start_len"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": 21}, "top_logprobs_num"),
        ({"text": "a", "token_ids_logprob": [1]}, "token_ids_logprob"),
        ({"text": "a", "lora_path": "x"}, "lora_path"),
        ({"text": "a", "image_data": "x"}, "image_data"),
    ],
)
async def test_refusals(served: Served, body: dict[str, Any], param: str) -> None:
    status, reply = await served.post(GENERATE, body)
    assert (status, reply["error"]["param"]) == (400, param)
    assert served.engine.requests == []
