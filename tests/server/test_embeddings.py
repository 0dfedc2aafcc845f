"""/v1/embeddings."""

from __future__ import annotations

import array
import asyncio
import base64
import math
from typing import Any

import pytest

from jaxsgl.interface import InvalidRequest
from server import embedding_routes
from tests.server.conftest import Served


def expected(prompt: bytes, dimensions: int = 3) -> list[float]:
    """See the fake engine."""
    values = (len(prompt), prompt[0], prompt[-1])[:dimensions]
    return [value / math.hypot(*values) for value in values]


async def test_a_text(served: Served) -> None:
    status, answer = await served.post("/v1/embeddings", {"input": "abc", "user": "me"})
    assert status == 200
    assert answer.pop("data") == [
        {"object": "embedding", "index": 0, "embedding": pytest.approx(expected(b"abc"))}
    ]
    assert answer == {
        "object": "list",
        "model": "fake-model",
        "pooling": "last",
        "usage": {
            "prompt_tokens": 3,
            "total_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
        "x-sglang-gpu-count": 1,
    }
    (request,) = served.engine.requests
    assert request.sampling.embedding and request.sampling.max_tokens == 0


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        (["abc", "xy"], [b"abc", b"xy"]),
        ([97, 98], [b"ab"]),
        ([[97, 98], [120]], [b"ab", b"x"]),
        (["ab"] * 300, [b"ab"] * 300),
    ],
)
async def test_batches_and_token_ids(served: Served, given: Any, prompts: list[bytes]) -> None:
    status, answer = await served.post("/v1/embeddings", {"input": given})
    assert status == 200
    assert [item["index"] for item in answer["data"]] == list(range(len(prompts)))
    for item, prompt in zip(answer["data"], prompts, strict=True):
        assert item["embedding"] == pytest.approx(expected(prompt))
    assert answer["usage"]["total_tokens"] == sum(map(len, prompts))


@pytest.mark.parametrize("dimensions", [1, 2, 3, None])
async def test_fewer_dimensions_as_base64(served: Served, dimensions: int | None) -> None:
    body = {"input": "abc", "dimensions": dimensions, "encoding_format": "base64"}
    status, answer = await served.post("/v1/embeddings", body)
    assert status == 200
    values = array.array("f", base64.b64decode(answer["data"][0]["embedding"]))
    assert values.tolist() == pytest.approx(expected(b"abc", dimensions or 3))
    assert math.hypot(*values) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "prompt"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "prompt"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [True]}, "input[0]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 4}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "stream": True}, "stream"),
    ],
)
async def test_what_is_refused(served: Served, body: Any, param: str) -> None:
    status, answer = await served.post("/v1/embeddings", body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert (await served.post("/v1/embeddings", {"input": "a", "model": "other"}))[0] == 404


async def test_an_answer_is_of_bounded_size(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_routes, "MAX_VALUES", 8)
    assert (await served.post("/v1/embeddings", {"input": ["a"] * 2}))[0] == 200
    assert (await served.post("/v1/embeddings", {"input": ["a"] * 3}))[0] == 400
    assert (await served.post("/v1/embeddings", {"input": ["a"] * 8, "dimensions": 1}))[0] == 200


async def test_one_that_is_refused_ends_all(served: Served) -> None:
    served.engine.refusal = InvalidRequest("no", param="prompt")
    assert (await served.post("/v1/embeddings", {"input": ["a"] * 200}))[0] == 400
    assert len(served.engine.requests) <= 128


async def test_a_client_that_leaves_ends_its_requests(served: Served) -> None:
    served.engine.hold_after = 0
    asking = asyncio.create_task(served.post("/v1/embeddings", {"input": ["a"] * 200}))
    await served.engine.held.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await served.engine.idle()
    assert len(served.engine.requests) <= 128
