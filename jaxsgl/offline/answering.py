"""One call answered: what runs in the engine's event loop, and what the caller's side reads."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from typing import Any

from jaxsgl.interface import Delta, GenerateRequest
from jaxsgl.offline.background import BackgroundLoop
from jaxsgl.offline.calls import Call
from jaxsgl.offline.gathering import gather_or_cancel
from jaxsgl.offline.local_engine import LocalEngine
from jaxsgl.offline.outputs import Output

type Item = tuple[int, Delta] | None
"""(which request of the call, what it gained); None is the end."""


async def whole_answers(
    engine: LocalEngine, call: Call, on_answer: Callable[[], object]
) -> list[dict[str, Any]]:
    """In the order of the requests. `on_answer` is called after each.

    Raises the EngineError of the first request that is refused; the others are then aborted.
    """

    async def answer(request: GenerateRequest) -> dict[str, Any]:
        output = Output(request, call.logprobs)
        async with aclosing(engine.generate(request)) as deltas:
            async for delta in deltas:
                output.add(delta)
        on_answer()
        return output.as_dict()

    return await gather_or_cancel(answer(request) for request in call.requests)


def stream_answers(
    loop: BackgroundLoop, engine: LocalEngine, call: Call
) -> Generator[dict[str, Any]]:
    """Answers as they grow, for a thread. Closing it aborts what still runs."""
    items: queue.SimpleQueue[Item] = queue.SimpleQueue()
    feeding = loop.submit(_feed(engine, call, items.put))
    growing = _GrowingOutputs(call)
    try:
        while (item := items.get()) is not None:
            yield growing.add(*item)
        feeding.result()
    finally:
        feeding.cancel()


async def async_stream_answers(
    loop: BackgroundLoop, engine: LocalEngine, call: Call
) -> AsyncGenerator[dict[str, Any]]:
    """Answers as they grow, for another event loop. Closing it aborts what still runs."""
    callers_loop = asyncio.get_running_loop()
    items: asyncio.Queue[Item] = asyncio.Queue()

    def put(item: Item) -> None:
        callers_loop.call_soon_threadsafe(items.put_nowait, item)

    feeding = loop.submit(_feed(engine, call, put))
    growing = _GrowingOutputs(call)
    try:
        while (item := await items.get()) is not None:
            yield growing.add(*item)
        await asyncio.wrap_future(feeding)
    finally:
        feeding.cancel()


async def _feed(engine: LocalEngine, call: Call, put: Callable[[Item], None]) -> None:
    """Put the deltas of all requests as they come; however this ends, None comes last.

    The caller's side puts them together: only what is new crosses over.
    """

    async def feed_one(index: int, request: GenerateRequest) -> None:
        async with aclosing(engine.generate(request)) as deltas:
            async for delta in deltas:
                put((index, delta))

    try:
        await gather_or_cancel(feed_one(*numbered) for numbered in enumerate(call.requests))
    finally:
        put(None)


class _GrowingOutputs:
    """The answers of a call, put together from the deltas of all."""

    def __init__(self, call: Call) -> None:
        self._outputs = [Output(request, call.logprobs) for request in call.requests]
        self._is_list = call.is_list

    def add(self, index: int, delta: Delta) -> dict[str, Any]:
        """The answer that grew; one of a list says by `index` which."""
        output = self._outputs[index]
        output.add(delta)
        return output.as_dict() | ({"index": index} if self._is_list else {})
