"""Every refusal has the right status, names the field, and reads like OpenAI's."""

from __future__ import annotations

import gzip
import io
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from jaxsgl.interface import EngineError, InvalidRequest, QueueFull, Unavailable
from server.json_body import MAX_BODY_BYTES
from tests.server.conftest import Served
from tests.server.test_openai_routes import CHAT, TEXT, chat


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.0001}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 257}, "stop"),
        ({"stop_token_ids": [256]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {"256": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"model": "gpt-4"}, "model"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"cache_salt": "a" * 257}, "cache_salt"),
        ({"stop_regex": ["a"] * 5}, "stop_regex"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [256]}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": ["a"], "regex": "b", "strict_complete": True}, "strict_complete"),
        ({"made_up": True}, "made_up"),
    ],
)
async def test_out_of_bounds(served: Served, fields: dict[str, Any], param: str) -> None:
    for path, body in ((TEXT, {"prompt": "ab", **fields}), (CHAT, chat("ab", **fields))):
        status, answer = await served.post(path, body)
        assert status == (404 if param == "model" else 400)
        error = answer.pop("error")
        assert answer == {}
        assert error.pop("message")
        assert error.pop("code") == ("model_not_found" if param == "model" else None)
        assert error == {"type": "invalid_request_error", "param": param}
    assert served.engine.requests == []


@pytest.mark.parametrize(
    "prompt",
    [None, [], "", [""], [[]], [1, "a"], [[1], 2], [1.5], [True], [-1], [256], [[1], ["a"]], {}],
)
async def test_bad_prompts(served: Served, prompt: Any) -> None:
    status, body = await served.post(TEXT, {"prompt": prompt})
    assert status == 400
    assert body["error"]["param"].startswith("prompt")


async def test_bad_chats(served: Served) -> None:
    status, body = await served.post(CHAT, {"messages": [{"role": "user"}]})
    assert (status, body["error"]["param"]) == (400, "messages[0].content")
    status, body = await served.post(CHAT, chat("a", top_logprobs=2))
    assert (status, body["error"]["param"]) == (400, "top_logprobs")


async def test_too_many_choices(served: Served) -> None:
    status, body = await served.post(TEXT, {"prompt": ["a"] * 65, "n": 2})
    assert (status, body["error"]["param"]) == (400, "n")
    assert served.engine.requests == []


async def test_fields_that_mean_nothing_here_are_accepted(served: Served) -> None:
    ignored = {
        "user": "u",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "prompt_cache_options": {"mode": "implicit"},
    }
    assert (await served.post(TEXT, {"prompt": "ab", **ignored}))[0] == 200
    assert (await served.post(CHAT, chat("ab", **ignored)))[0] == 200


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("no", param="messages", code="context_length_exceeded"), 400, "invalid_"),
        (QueueFull("full"), 429, "rate_limit_error"),
        (Unavailable("gone"), 503, "server_error"),
        (EngineError("numerical_error"), 500, "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refused_by_the_engine(
    served: Served, error: EngineError, status: int, kind: str, stream: bool
) -> None:
    served.engine.refusal = error
    async with served.session.post(served.url + CHAT, json=chat("a", stream=stream)) as response:
        assert response.status == status
        assert ("Retry-After" in response.headers) == (status in (429, 503))
        body = (await response.json())["error"]
    assert body.pop("type").startswith(kind)
    assert body == {"message": error.message, "param": error.param, "code": error.code}


async def test_defect_shows_nothing_of_itself(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.engine.break_after = (0, RuntimeError("/secret/path"))
    async with served.session.post(served.url + CHAT, json=chat("a")) as response:
        assert response.status == 500
        assert (await response.json())["error"]["code"] == "internal_error"
        text = await response.text()
        request_id = response.headers["x-request-id"]
    assert "secret" not in text and "Traceback" not in text
    assert request_id in caplog.text and "/secret/path" in caplog.text


async def test_model_without_a_chat_template(served: Served) -> None:
    model = served.engine.model
    fields = {name: getattr(model, name) for name in model.__struct_fields__}
    served.engine.model = type(model)(**{**fields, "has_chat_template": False})
    assert (await served.post(CHAT, chat("a")))[0] == 400
    assert (await served.post(TEXT, {"prompt": "a"}))[0] == 200


async def test_bodies_that_are_not_read(served: Served) -> None:
    good = b'{"prompt":"ab"}'
    for headers, data, status in (
        ({"Content-Type": "text/plain"}, good, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, good, 415),
        ({"Content-Type": "application/json; charset=utf-16"}, good, 415),
        ({"Content-Encoding": "gzip"}, gzip.compress(b" " * 10_000_000), 415),
        ({}, b" " * MAX_BODY_BYTES + b"x", 413),
        ({"Content-Type": "application/json; charset=UTF-8"}, good, 200),
    ):
        all_headers = {"Content-Type": "application/json", **headers}
        url = served.url + TEXT
        body = io.BytesIO(data)
        async with served.session.post(url, data=body, headers=all_headers) as response:
            assert response.status == status, headers
            answer = await response.json()
        if status != 200:
            assert answer["error"]["type"] == "invalid_request_error"


async def test_largest_body(served: Served) -> None:
    padding = MAX_BODY_BYTES - len(b'{"prompt":"ab"}')
    for extra, status in ((0, 200), (1, 413)):
        data = b" " * (padding + extra) + b'{"prompt":"ab"}'

        async def chunks(data: bytes = data) -> AsyncGenerator[bytes, None]:
            yield data

        for body in (io.BytesIO(data), chunks()):
            headers = {"Content-Type": "application/json"}
            async with served.session.post(served.url + TEXT, data=body, headers=headers) as r:
                assert r.status == status


async def test_unknown_routes_and_methods(served: Served) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", CHAT, 405),
        ("POST", "/health", 405),
        ("OPTIONS", CHAT, 405),
        ("PUT", "/v1/models", 405),
    ):
        async with served.session.request(method, served.url + path) as response:
            assert response.status == status
            assert ("Allow" in response.headers) == (status == 405)
            error = (await response.json())["error"]
            assert (error["type"], error["param"]) == ("invalid_request_error", None)


async def test_request_ids(served: Served) -> None:
    for given, echoed in (("abc-1", True), ("a b", False), ("x" * 129, False)):
        for path in ("/health", "/nothing"):
            headers = {"X-Request-Id": given}
            async with served.session.get(served.url + path, headers=headers) as response:
                assert (response.headers["X-Request-Id"] == given) == echoed
    body = {"prompt": "a", "stream": True}
    async with served.session.post(served.url + TEXT, json=body) as response:
        assert response.headers["X-Request-Id"]
