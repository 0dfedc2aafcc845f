"""From the engine's deltas to an HTTP reply, whole or streamed, in the format of the route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from aiohttp import web

from jaxsgl.interface import Delta, EngineError, Finish
from server.context import CONTEXT, REQUEST_ID
from server.deltas import IndexedDelta
from server.errors import internal_error
from server.event_stream import ClientGone, EventStream, open_event_stream, write_in_time
from server.replies import ReplyFormat, UsageMeter
from server.schema import StreamOptions
from server.sse import DONE, error_event

MANY_LOGPROBS = 512
"""Scored tokens in one delta from which on they take long to write."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generation:
    """The answers to one HTTP request, on their way."""

    deltas: AsyncGenerator[IndexedDelta, None]
    num_answers: int
    usage: UsageMeter
    reply_format: ReplyFormat
    done: bytes = DONE
    """The last bytes of a stream that did not break."""
    error_event: Callable[[EngineError], bytes] = error_event
    """The last event of one that did."""


def json_response(value: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def reply_whole(request: web.Request, generation: Generation) -> web.StreamResponse:
    """One JSON body once every answer is complete. Raises EngineError if one of them fails."""
    async with aclosing(generation.deltas) as deltas:
        async for index, delta in deltas:
            raise_if_error(delta.finish)
            await _write(delta, generation.reply_format.add, index, delta)
            generation.usage.update(index, delta.usage)
    return await whole_response(request, generation.reply_format.whole(generation.usage.total()))


async def whole_response(request: web.Request, body: bytes) -> web.StreamResponse:
    """Send a JSON body that may be large to a client that may be slow."""
    response = web.Response(body=body, content_type="application/json")
    await response.prepare(request)
    timeout_s = request.app[CONTEXT].config.stream_write_timeout_s
    await write_in_time(request, response.write_eof(), timeout_s)
    return response


async def reply_streamed(
    request: web.Request, generation: Generation, options: StreamOptions
) -> web.StreamResponse:
    """Events as the answers grow.

    The response begins with the first delta, so that what is refused before it is an error with a
    status. An error after that is one last event, and the connection closes without [DONE].
    """
    async with aclosing(generation.deltas) as deltas:
        first = await anext(deltas)
        raise_if_error(first[1].finish)
        timeout_s = request.app[CONTEXT].config.stream_write_timeout_s
        stream = await open_event_stream(request, timeout_s)
        failure: EngineError | None = None
        try:
            await _send_events(stream, first, generation, options)
        except ClientGone:
            raise
        except EngineError as error:
            failure = error
        except Exception:
            logger.exception("A defect broke the stream of request %s", request[REQUEST_ID])
            failure = internal_error()
    # The engine is done with the request before the client has to take the end of it.
    if failure is not None:
        request.app[CONTEXT].metrics.error(failure)
        return await stream.end(generation.error_event(failure), close=True)
    last = generation.done
    if options.include_usage:
        last = generation.reply_format.usage(generation.usage.total()) + last
    return await stream.end(last)


async def _send_events(
    stream: EventStream, first: IndexedDelta, generation: Generation, options: StreamOptions
) -> None:
    reply_format = generation.reply_format
    opening = b"".join(map(reply_format.opening, range(generation.num_answers)))
    await stream.send(opening + await _write(first[1], _events, generation, options, *first))
    async for index, delta in generation.deltas:
        raise_if_error(delta.finish)
        if events := await _write(delta, _events, generation, options, index, delta):
            await stream.send(events)


async def _write[**P, T](
    delta: Delta, write: Callable[P, T], *args: P.args, **options: P.kwargs
) -> T:
    """What `write` makes of a delta; of one that scores a long prompt beside the event loop."""
    if len(delta.prompt_logprobs or ()) < MANY_LOGPROBS:
        return write(*args, **options)
    return await asyncio.to_thread(write, *args, **options)


def _events(generation: Generation, options: StreamOptions, index: int, delta: Delta) -> bytes:
    """The text of a delta and, with the last one, why the answer ended."""
    generation.usage.update(index, delta.usage)
    so_far = generation.usage.total() if options.continuous_usage_stats else None
    events = generation.reply_format.text(index, delta, so_far)
    if delta.finish is not None:
        events += generation.reply_format.closing(index, delta.finish)
    return events


def raise_if_error(finish: Finish | None) -> None:
    """One answer that ended in an error makes an error of the whole reply."""
    if finish is not None and finish.kind == "error":
        raise EngineError(finish.message or "The engine could not complete the answer")
