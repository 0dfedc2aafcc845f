"""Several answers as one stream: order, failure, and what is left behind."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from jaxsgl.config import ServerConfig
from jaxsgl.interface import (
    GenerateRequest,
    InvalidRequest,
    QueueFull,
    SamplingParams,
    TextPrompt,
    Unavailable,
)
from jaxsgl.metrics import Metrics
from server.access import Keys
from server.context import ServerContext
from server.deltas import answer_deltas
from tests.server.fake_engine import FakeEngine


def requests(*texts: str) -> list[GenerateRequest]:
    return [
        GenerateRequest(
            request_id=str(index), prompt=TextPrompt(text), sampling=SamplingParams(max_tokens=3)
        )
        for index, text in enumerate(texts)
    ]


def context(
    engine: FakeEngine, metrics: Metrics, config: ServerConfig | None = None
) -> ServerContext:
    return ServerContext(engine, config or ServerConfig(), metrics, Keys(), {}, started_at=0)


def num_ended(metrics: Metrics, how: str) -> float:
    for line in metrics.exposition().decode().splitlines():
        if line.startswith(f'jaxsgl_num_requests_total{{finish="{how}"}}'):
            return float(line.split()[1])
    return 0.0


@pytest.mark.parametrize("texts", [("abc",), ("abc", "xy", "z")])
async def test_every_delta_of_every_answer(texts: tuple[str, ...]) -> None:
    engine, metrics = FakeEngine(), Metrics()
    answers = [""] * len(texts)
    async for index, delta in answer_deltas(context(engine, metrics), requests(*texts), ""):
        answers[index] += delta.text
    assert answers == ["abc", "xyx", "zzz"][: len(texts)]
    assert engine.open == set()
    assert num_ended(metrics, "length") == len(texts)
    assert num_ended(metrics, "disconnected") == 0


@pytest.mark.parametrize("num", [1, 3])
async def test_failure_ends_all(num: int) -> None:
    engine, metrics = FakeEngine(), Metrics()
    engine.break_after = (1, Unavailable("gone"))
    with pytest.raises(Unavailable):
        async for _ in answer_deltas(context(engine, metrics), requests(*["ab"] * num), ""):
            pass
    assert engine.open == set()
    assert num_ended(metrics, "error") >= 1
    assert num_ended(metrics, "error") + num_ended(metrics, "disconnected") == num


async def test_one_refusal_among_several() -> None:
    engine, metrics = FakeEngine(), Metrics()
    with pytest.raises(InvalidRequest, match="empty"):
        async for _ in answer_deltas(context(engine, metrics), requests("ab", "", "ab"), ""):
            pass
    assert engine.open == set()
    assert num_ended(metrics, "refused") == 1


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("taken", [0, 1, 4])
async def test_closed_early(num: int, taken: int) -> None:
    engine, metrics = FakeEngine(), Metrics()
    engine.endless_text = "x"
    async with aclosing(
        answer_deltas(context(engine, metrics), requests(*["ab"] * num), "")
    ) as deltas:
        for _ in range(taken):
            await anext(deltas)
    assert engine.open == set()
    assert num_ended(metrics, "disconnected") == (num if taken else 0)


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("hold_after", [0, 1, 2])
async def test_cancelled_wherever_it_waits(num: int, hold_after: int) -> None:
    engine, metrics = FakeEngine(), Metrics()
    engine.hold_after = hold_after

    async def consume() -> None:
        async with aclosing(
            answer_deltas(context(engine, metrics), requests(*["ab"] * num), "")
        ) as deltas:
            async for _ in deltas:
                pass

    task = asyncio.create_task(consume())
    await engine.held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.open == set()
    assert num_ended(metrics, "disconnected") == num
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_answer_that_never_says_why_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, metrics = FakeEngine(), Metrics()
    monkeypatch.setattr("tests.server.fake_engine.answer", lambda _: [])
    for num in (1, 2):
        with pytest.raises(Exception, match="without a reason"):
            async for _ in answer_deltas(context(engine, metrics), requests(*["ab"] * num), ""):
                pass


async def test_refusals_are_not_failures() -> None:
    engine, metrics = FakeEngine(), Metrics()
    engine.refusal = QueueFull("full")
    with pytest.raises(QueueFull):
        await anext(answer_deltas(context(engine, metrics), requests("ab"), ""))
    assert (num_ended(metrics, "refused"), num_ended(metrics, "error")) == (1, 0)
