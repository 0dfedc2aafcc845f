"""A client of a running server, on aiohttp alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

CAPITAL = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 24,
}


class HttpClient:
    """An async context manager; everything it opened is closed with it."""

    def __init__(self, url: str) -> None:
        self._url = url
        # One connection per request, as many as there are: what goes away is one request.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=240),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self._session.get(self._url + path) as response:
            return response.status, await response.json()

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and decoded body; a body of bytes is sent as it is."""
        sent = {"data": body} if isinstance(body, bytes) else {"json": body}
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._url + path, headers=headers, **sent) as response:
            return response.status, await response.json()

    async def post_for_headers(self, path: str, body: Any) -> tuple[int, Any, Any]:
        """Status, decoded body and headers."""
        async with self._session.post(self._url + path, json=body) as response:
            return response.status, await response.json(), response.headers

    async def ready_turns(self, status: int) -> None:
        """Returns when /ready answers with that status."""
        await self._turns("/ready", status)

    async def health_turns(self, status: int) -> None:
        """Returns when /health answers with that status."""
        await self._turns("/health", status)

    async def _turns(self, path: str, status: int) -> None:
        async with asyncio.timeout(120):
            while (await self.get(path))[0] != status:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.02)

    async def read_events(self, path: str, body: dict[str, Any], num_events: int) -> int:
        """Read that many events of a streamed answer, or all if there are fewer, and hang up."""
        async with self._session.post(self._url + path, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            num_read = 0
            while num_read < num_events:
                line = await response.content.readline()
                if not line:
                    break
                num_read += line.startswith(b"data: ")
            return num_read

    async def stream_text(
        self, path: str, body: dict[str, Any], begun: asyncio.Event | None = None
    ) -> str:
        """The text of a streamed chat answer, which must come to its end."""
        text, _ = await self.stream_answer(path, body, begun)
        return text

    async def stream_answer(
        self, path: str, body: dict[str, Any], begun: asyncio.Event | None = None
    ) -> tuple[str, int]:
        """Text and tokens of a streamed chat answer, which must come to its end."""
        body = {**body, "stream_options": {"include_usage": True}}
        *events, usage, last = await self._events(path, body, begun)
        assert last == "[DONE]", last
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
        text = "".join(delta.get("content") or "" for delta in deltas)
        return text, json.loads(usage)["usage"]["completion_tokens"]

    async def last_event(
        self, path: str, body: dict[str, Any], begun: asyncio.Event | None = None
    ) -> Any:
        """The last event of a streamed answer, decoded. There must be one before it."""
        *before, last = await self._events(path, body, begun)
        assert before
        return json.loads(last)

    async def _events(
        self, path: str, body: dict[str, Any], begun: asyncio.Event | None
    ) -> list[str]:
        """The data of all events. `begun` is set when the first has come."""
        text = b""
        async with self._session.post(self._url + path, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            async for chunk in response.content.iter_any():
                text += chunk
                if begun is not None and b"\n\n" in text:
                    begun.set()
        return [event.removeprefix("data: ") for event in text.decode().strip().split("\n\n")]

    async def num_in_flight(self) -> int:
        """Requests that are at a replica now."""
        _, body = await self.get("/admin/replicas")
        return sum(replica["num_in_flight"] for replica in body["replicas"])

    async def capital(self) -> str:
        """The answer about the capital of France."""
        status, reply = await self.post("/v1/chat/completions", CAPITAL)
        assert status == 200, reply
        return reply["choices"][0]["message"]["content"]

    async def metrics(self) -> dict[str, float]:
        """Every sample without labels, by name."""
        async with self._session.get(self._url + "/metrics") as response:
            text = await response.text()
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels
        }

    async def metrics_when(self, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """The first reading that fulfils the condition; the engine reports every second."""
        metrics: dict[str, float] = {}
        try:
            async with asyncio.timeout(60):
                while not condition(metrics := await self.metrics()):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"still {metrics}") from None
        return metrics


def is_idle(metrics: dict[str, float]) -> bool:
    """Whether every page, slot and lock is back."""
    get = {name.removeprefix("jaxsgl_"): value for name, value in metrics.items()}.__getitem__
    return (
        get("num_running_reqs") == get("num_queue_reqs") == get("radix_locks") == 0
        and get("slots_free") == get("slots_total") > 0
        and get("pages_free") + get("pages_cached") == get("pages_total") > 0
    )
