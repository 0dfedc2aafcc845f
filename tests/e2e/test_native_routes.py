"""SGLang's routes on a real server: scores, commits, aborts, pauses, profiles."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.http_client import HttpClient, is_idle

TEXT = "The capital of France is Paris, and the capital of Italy is Rome."


async def generate(client: HttpClient, max_new_tokens: int, **fields: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": max_new_tokens, "temperature": 0}
    status, reply = await client.post("/generate", {"sampling_params": sampling, **fields})
    assert status == 200, reply
    return reply


async def tokens_of(client: HttpClient, text: str) -> list[int]:
    status, reply = await client.post("/tokenize", {"prompt": text})
    assert status == 200
    return reply["tokens"]


async def test_tokens_and_back(client: HttpClient) -> None:
    ids = await tokens_of(client, TEXT)
    status, reply = await client.post("/detokenize", {"tokens": ids})
    assert (status, reply) == (200, {"text": TEXT})


async def test_a_prompt_is_scored_as_its_answers_are(client: HttpClient) -> None:
    """What was drawn, given as a prompt, has the log-probabilities that it was drawn with."""
    prompt = await tokens_of(client, "The capital of France is")
    drawn = await generate(client, 6, input_ids=prompt, return_logprob=True)
    ids = prompt + drawn["output_ids"]
    scored = await generate(
        client, 0, input_ids=ids, return_logprob=True, logprob_start_len=len(prompt)
    )
    assert (scored["text"], scored["output_ids"]) == ("", [])
    given = scored["meta_info"]["input_token_logprobs"]
    found = drawn["meta_info"]["output_token_logprobs"]
    assert [entry[1] for entry in given] == [entry[1] for entry in found]
    assert [entry[0] for entry in given] == pytest.approx([e[0] for e in found], abs=1e-3)


async def test_a_committed_prompt_is_found_in_the_cache(client: HttpClient) -> None:
    prompt = {"text": TEXT * 3, "cache_salt": "committed"}
    assert (await generate(client, 0, **prompt))["meta_info"]["cached_tokens"] == 0
    meta = (await generate(client, 1, **prompt))["meta_info"]
    assert meta["cached_tokens"] >= meta["prompt_tokens"] // 16 * 16 - 16 > 0


async def test_a_prompt_is_held_by_its_name(client: HttpClient) -> None:
    await generate(client, 0, text=TEXT * 3, cache_salt="held", hold_s=600, rid="held")
    await client.metrics_when(lambda metrics: metrics["jaxsgl_radix_holds"] == 1)
    assert (await client.post("/abort_request", {"rid": "held"}))[0] == 200
    await client.metrics_when(
        lambda metrics: metrics["jaxsgl_radix_holds"] == 0 and is_idle(metrics)
    )


async def test_abort_ends_an_answer_midway(client: HttpClient) -> None:
    sampling = {"max_new_tokens": 2000, "ignore_eos": True}
    body = {"text": TEXT, "rid": "to-be-ended", "sampling_params": sampling}
    answer = asyncio.create_task(client.post("/generate", body))
    while not answer.done():  # an abort that is there first finds nothing to end
        assert (await client.post("/abort_request", {"rid": "to-be-ended"}))[0] == 200
        await asyncio.sleep(0.1)
    status, reply = await answer
    assert (status, reply["meta_info"]["finish_reason"]["type"]) == (200, "abort")
    await client.metrics_when(is_idle)


async def test_a_pause_changes_no_answer(client: HttpClient) -> None:
    body = {"text": "Once upon a time", "cache_salt": "paused"}
    undisturbed = await generate(client, 48, **body)
    answer = asyncio.create_task(generate(client, 48, **body))
    assert (await client.post("/pause_generation", {"mode": "retract"}))[0] == 200
    assert (await client.post("/flush_cache", {}))[0] == 200
    await asyncio.sleep(0.2)
    assert not answer.done() or (await answer)["text"]
    assert (await client.post("/continue_generation", {}))[0] == 200
    assert (await answer)["output_ids"] == undisturbed["output_ids"]
    await client.metrics_when(is_idle)


async def test_a_profile_is_written(client: HttpClient) -> None:
    status, reply = await client.post("/start_profile", {"duration_s": 60})
    assert status == 200, reply
    await generate(client, 4, text="Hello")
    assert (await client.post("/start_profile", {}))[0] == 400
    assert (await client.post("/stop_profile", {}))[0] == 200
    assert num_traces(reply["folder"]) == 1


def num_traces(folder: str) -> int:
    return len(list(Path(folder).rglob("*.xplane.pb")))
