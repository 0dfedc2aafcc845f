"""What a user gets from a server that was started without any settings."""

import json

import openai
import pytest

from bench.prefix_cache import ChatShape, run_chats
from tests.e2e.http_client import CAPITAL, HttpClient
from tests.e2e.server_process import ROOT, ServerProcess

GOLDENS = json.loads((ROOT / "tests/goldens/smollm2_greedy.json").read_text())["prompts"]


async def test_the_capital_of_france_streamed_and_whole(server: ServerProcess):
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", _strict_response_validation=True
    ) as client:
        (model,) = [model.id async for model in client.models.list()]
        assert model == "SmolLM2-135M-Instruct"
        reply = await client.chat.completions.create(model=model, **CAPITAL)
        stream = await client.chat.completions.create(
            model=model, **CAPITAL, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    (choice,) = reply.choices
    assert choice.message.content is not None and "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    answer = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(part.delta.content or "" for part in answer) == choice.message.content
    assert answer[-1].finish_reason == "stop"
    assert reply.usage is not None and chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == reply.usage.total_tokens


async def test_answers_over_http_are_the_golden_ones(client: HttpClient):
    for golden in GOLDENS[:4]:
        body = {
            "prompt": golden["prompt_ids"],
            "max_tokens": 32,
            "temperature": 0,
            "ignore_eos": True,
        }
        status, reply = await client.post("/v1/completions", body)
        assert status == 200, reply
        assert reply["choices"][0]["text"] == without_control_tokens(golden["text"])


def without_control_tokens(text: str) -> str:
    return text.replace("<|im_start|>", "").replace("<|im_end|>", "")


async def test_the_fifth_turn_of_a_chat_comes_from_the_cache(server: ServerProcess):
    shape = ChatShape(turns=5, system_len=200, question_len=15, answer_len=48)
    ((*_, fifth),) = await run_chats(server.url, 1, shape)
    assert fifth.cached_tokens / fifth.prompt_tokens >= 0.85


async def test_health_ready_and_metrics(client: HttpClient):
    assert await client.get("/health") == (200, {"status": "ok"})
    assert await client.get("/ready") == (200, {"status": "ready"})
    metrics = await client.metrics()
    assert metrics["jaxsgl_recompiles_total"] == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"messages": [', 400, None),
        ({"messages": [{"role": "user", "content": "w " * 9000}]}, 400, "context_length_exceeded"),
        (CAPITAL | {"max_tokens": 8192}, 400, "context_length_exceeded"),
        (CAPITAL | {"no_such_field": 1}, 400, None),
        (CAPITAL | {"model": "gpt-4"}, 404, "model_not_found"),
    ],
    ids=["malformed", "oversized prompt", "oversized answer", "unknown field", "other model"],
)
async def test_bad_requests_are_refused_in_one_line(client: HttpClient, body, status, code):
    got, reply = await client.post("/v1/chat/completions", body)
    error = reply["error"]
    assert (got, error["code"]) == (status, code)
    assert error["message"] and "\n" not in error["message"] and "Traceback" not in str(reply)
