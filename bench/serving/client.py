"""Sends one request and notes what comes back, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from bench.serving.backends import Backend
from bench.serving.event_stream import DONE, EventSplitter, decode_event
from bench.serving.records import Record

DETAIL_CHARS = 200


class Clock:
    """Seconds since the run began."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start_s = time.perf_counter()

    def now_s(self) -> float:
        return time.perf_counter() - self.start_s

    async def sleep_until(self, moment_s: float) -> None:
        """The event loop's timers are late by up to a millisecond."""
        delay_s = moment_s - self.now_s()
        if delay_s > 0:
            await asyncio.sleep(delay_s)


class Client:
    """Sends requests to one server."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, backend: Backend, timeout_s: float
    ) -> None:
        self._session = session
        self._url = url.rstrip("/") + backend.path
        self._timeout_s = timeout_s

    async def send(self, body: Mapping[str, Any], record: Record, clock: Clock) -> str:
        """Fill `record` in from the moment of sending to the end; the text of the answer.

        Never raises for what a server or the network does: `record.error` says what kind of
        failure it was. When cancelled, the record keeps what it has.
        """
        payload = msgspec.json.encode(body)
        texts: list[str] = []
        record.sent_s = clock.now_s()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._stream(payload, record, clock, texts)
        except TimeoutError:
            _fail(record, "timeout", f"no end after {self._timeout_s:g} s")
        except aiohttp.ClientConnectorError as error:
            _fail(record, "connect", error)
        except (aiohttp.ClientError, OSError) as error:
            _fail(record, "disconnected", error)
        except msgspec.DecodeError as error:
            _fail(record, "malformed", error)
        finally:
            record.end_s = clock.now_s()
        return "".join(texts)

    async def _stream(self, payload: bytes, record: Record, clock: Clock, texts: list[str]) -> None:
        headers = {"Content-Type": "application/json", "X-Request-Id": record.id}
        async with self._session.post(self._url, data=payload, headers=headers) as response:
            if response.status != 200:
                _fail(record, f"http_{response.status}", await response.text())
                return
            splitter, done = EventSplitter(), False
            # Events that arrive together are stamped together: that is when the client has them.
            async for chunk in response.content.iter_any():
                now_s = clock.now_s()
                for data in splitter.feed(chunk):
                    done = done or data == DONE
                    if data != DONE:
                        _note(data, record, now_s, texts)
        if record.error is None and not (done and record.finish is not None):
            _fail(record, "cut_short", "the stream ended without [DONE] or a finish reason")
        if not record.output_len:
            record.output_len = len(record.event_s)  # a server that tells no usage


def _note(data: bytes, record: Record, now_s: float, texts: list[str]) -> None:
    event = decode_event(data)
    if event.failure is not None:
        _fail(record, "server_error", event.failure)
    text = event.text
    # A token can be without text: half of a character, or a server without a tokenizer, whose last
    # one comes with the reason to end. After text, that event is an event of its own.
    if text or (event.answers and (event.finish is None or not any(texts))):
        record.event_s.append(now_s)
        texts.append(text)
    record.finish = event.finish or record.finish
    if event.usage is not None:
        record.input_len = event.usage.prompt_tokens
        record.output_len = event.usage.completion_tokens
        record.cached_len = event.usage.cached_len


def _fail(record: Record, kind: str, detail: object) -> None:
    """The first failure is the cause: a server may well break the connection after an error."""
    if record.error is not None:
        return
    record.error = kind
    text = f"{type(detail).__name__}: {detail}" if isinstance(detail, Exception) else str(detail)
    record.detail = text[:DETAIL_CHARS]
