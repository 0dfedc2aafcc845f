"""Streamed and whole answers are the same text, and the one that the draws add up to. Everything is
real but the runner."""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jaxsgl.interface import GenerateRequest, RegexGrammar, SamplingParams, TokenPrompt
from tests.fake_runner import EOS_ID, VOCAB_SIZE, FakeRunner, expected_tokens
from tests.offline import local_replica
from tests.server.test_over_a_scheduler import Served, serve

NUM_PROMPTS = 200
MAX_TOKENS = 40
_PIECES = ["a", "b", "ab", " ", "\n", "é", "日本", "🦊", "aé", "END", "EN", "D", "."]
_CUT = [piece.encode() for piece in ("é", "日", "🦊")]
TOKEN_BYTES = [
    b"",
    *(piece.encode() for piece in _PIECES),
    *(each[:1] for each in _CUT),
    *(each[1:] for each in _CUT),
    b"\xff",
]
TOKEN_BYTES += [bytes([97 + i % 26]) for i in range(VOCAB_SIZE - len(TOKEN_BYTES))]


@asynccontextmanager
async def serve_pieces(monkeypatch: pytest.MonkeyPatch, **config: Any) -> AsyncIterator[Served]:
    """A server whose tokens cut characters and words apart."""
    monkeypatch.setattr(local_replica, "TOKEN_BYTES", TOKEN_BYTES)
    monkeypatch.setattr(local_replica.LetterTokenizer, "token_bytes", TOKEN_BYTES)
    async with serve(FakeRunner(), **config) as served:
        yield served


def texts_of(prompt: list[int], seed: int) -> list[bytes]:
    """Of each token of the answer."""
    return [TOKEN_BYTES[token] for token in expected_tokens(prompt, MAX_TOKENS, seed=seed)]


def cut(texts: list[bytes], stops: list[str]) -> tuple[bytes, str | None]:
    """What a search in the whole text, after each token, leaves; and the stop that it finds."""
    data = b""
    for text in texts:
        data += text
        found = [(data.find(stop.encode()), -len(stop), stop) for stop in stops]
        found = [each for each in found if each[0] >= 0]
        if found:
            begin, _, stop = min(found)
            return data[:begin], stop
    return data, None


async def streamed(served: Served, body: dict[str, Any]) -> tuple[str, Any, str]:
    url = served.url + "/v1/completions"
    async with served.session.post(url, json={**body, "stream": True}) as response:
        events = (await response.text()).split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["text"] for choice in choices)
    return text, choices[-1]["matched_stop"], choices[-1]["finish_reason"]


async def test_streamed_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, num_stopped = random.Random(11), 0
    async with serve_pieces(monkeypatch) as served:
        for number in range(NUM_PROMPTS):
            prompt = [rng.randrange(1, VOCAB_SIZE) for _ in range(rng.randint(1, 12))]
            texts = texts_of(prompt, number)
            text = b"".join(texts).decode(errors="ignore")
            at = rng.randint(0, len(text))
            stops = [text[at : at + rng.randint(1, 4)]]
            stops += rng.sample(["END", "é日", "🦊", "zzz", "\nEND"], 2)
            stops = [stop for stop in stops if stop]
            body = {"prompt": prompt, "max_tokens": MAX_TOKENS, "seed": number, "stop": stops}
            status, reply, _ = await served.post("/v1/completions", body)
            assert status == 200
            (choice,) = reply["choices"]
            got = (choice["text"], choice["matched_stop"], choice["finish_reason"])
            assert await streamed(served, body) == got
            expected, stop = cut(texts, stops)
            assert choice["text"] == expected.decode(errors="replace"), (texts, stops)
            if stop is not None:
                num_stopped += 1
                assert (choice["matched_stop"], choice["finish_reason"]) == (stop, "stop")
    assert num_stopped > NUM_PROMPTS / 3


async def test_patterns_end_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, num_stopped = "[é日]+[a-z]", 0
    async with serve_pieces(monkeypatch) as served:
        for number in range(40):
            prompt = [1 + number, 2]
            body = {
                "prompt": prompt,
                "max_tokens": MAX_TOKENS,
                "seed": number,
                "stop_regex": pattern,
                "no_stop_trim": True,
            }
            _, reply, _ = await served.post("/v1/completions", body)
            (choice,) = reply["choices"]
            text = b"".join(texts_of(prompt, number)).decode(errors="replace")
            match = re.search(pattern, text)
            assert choice["text"] == (text if match is None else text[: match.end()])
            assert await streamed(served, body) == (
                choice["text"],
                choice["matched_stop"],
                choice["finish_reason"],
            )
            num_stopped += match is not None
        status, reply, _ = await served.complete([1], stop_regex="a*")
        assert (status, reply["error"]["param"]) == (400, "stop_regex")
    assert num_stopped > 10


async def test_only_allowed_tokens_and_no_bad_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mask reads a draw too late: the next step is on its way before the last draw is known."""
    async with serve_pieces(monkeypatch) as served:
        for seed in range(8):
            status, reply, _ = await served.complete(
                [5, 6], seed=seed, max_tokens=30, allowed_token_ids=[1, 2, 3, 6], n=3, logprobs=0
            )
            assert status == 200
            for choice in reply["choices"]:
                assert set(choice["logprobs"]["tokens"]) <= {"a", "b", "ab", "é"}
            free = (await served.complete([5, 6], seed=seed, max_tokens=60))[1]
            words = [free["choices"][0]["text"].replace("\ufffd", "")[:2], "é", "ba", "ND"]
            _, reply, _ = await served.complete([5, 6], seed=seed, max_tokens=60, bad_words=words)
            text = reply["choices"][0]["text"]
            assert len(text) > 20 and not any(word in text for word in words)
        _, reply, _ = await served.complete([5], allowed_token_ids=[EOS_ID], ignore_eos=False)
        assert reply["choices"][0]["finish_reason"] == "stop"


async def test_answers_to_one_prompt_share_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is computed once: others of its answers begin from the pages that it left."""
    prompt = list(range(1, 34))  # eight whole pages and a token
    async with serve_pieces(monkeypatch) as served:
        _, reply, _ = await served.complete(prompt, n=4, max_tokens=4)
        assert len({choice["text"] for choice in reply["choices"]}) > 1
        stats = served.scheduler.stats()
        assert (stats.prompt_tokens, stats.cached_tokens) == (4 * 33, 3 * 32)
        assert stats.pages_held_peak <= 8 + 4 * 2
        assert reply["usage"]["prompt_tokens"] == 33
        assert reply["usage"]["completion_tokens"] == 16


async def test_echo_scores_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake runner gives token t the log-probability -(t + 1)."""
    async with serve_pieces(monkeypatch) as served:
        for max_tokens in (0, 2):
            _, reply, _ = await served.complete(
                [7, 8, 9], echo=True, logprobs=0, max_tokens=max_tokens
            )
            (choice,) = reply["choices"]
            scores = choice["logprobs"]["token_logprobs"]
            assert scores[:3] == [None, -9.0, -10.0] and len(scores) == 3 + max_tokens
            assert reply["usage"]["completion_tokens"] == max_tokens


async def test_a_grammar_that_begins_within_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free up to the mark, then held; with `grammar_repeats` free again after each text."""
    num_begun = num_again = 0
    async with serve_pieces(monkeypatch) as served:
        for seed in range(60):
            repeats = seed % 2 == 1
            request = GenerateRequest(
                request_id=f"r{seed}",
                prompt=TokenPrompt([3, 4]),
                sampling=SamplingParams(
                    max_tokens=120,
                    seed=seed,
                    grammar=RegexGrammar(r"b+\."),
                    grammar_after="aé",
                    grammar_repeats=repeats,
                ),
            )
            deltas = [delta async for delta in served.pool.generate(request)]
            text, finish = "".join(delta.text for delta in deltas), deltas[-1].finish
            assert finish is not None
            _, *held = text.split("aé")
            if not held:
                assert repeats or finish.kind == "length"
                continue
            num_begun += 1
            if not repeats:
                assert re.fullmatch(
                    r"\s*b+\." if finish.kind == "stop" else r"\s*(b+\.?)?", held[0]
                )
                continue
            num_again += len(held) > 1
            for number, rest in enumerate(held):
                last = number == len(held) - 1 and finish.kind == "length"
                assert re.match(r"\s*(b+\.|b*$)" if last else r"\s*b+\.", rest), text
    assert num_begun > 20 and num_again > 2
