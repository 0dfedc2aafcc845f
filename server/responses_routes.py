"""OpenAI's responses API: create, stream, get, cancel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from aiohttp import web

from jaxsgl.interface import EngineError, InvalidRequest, QueueFull
from server.chat_plan import chat_parts, new_head
from server.context import CONTEXT, REQUEST_ID, TENANT, ready_engine
from server.deltas import answer_deltas
from server.errors import RequestRefused, internal_error
from server.json_body import read_json
from server.messages import Message, call_message
from server.replies import UsageMeter
from server.replying import Generation, raise_if_error, reply_streamed, reply_whole
from server.requests import check_model_name
from server.response_store import Kept, ResponseStore
from server.responses_format import ResponsesFormat
from server.responses_input import chat_body, input_messages
from server.responses_schema import (
    RESPONSES_DECODER,
    CallOut,
    MessageOut,
    ResponseEvent,
    ResponseOut,
)
from server.route import GENERATION_ERRORS, Route
from server.schema import StreamOptions

RESPONSES = web.AppKey("responses", ResponseStore)
_STREAM_OPTIONS = StreamOptions(include_usage=True)

logger = logging.getLogger(__name__)


def responses_routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/v1/responses",
            handler=create_response,
            body=RESPONSES_DECODER,
            answers={200: ResponseOut},
            events=ResponseEvent,
            errors=GENERATION_ERRORS,
        ),
        Route(
            method="GET",
            path="/v1/responses/{response_id}",
            handler=get_response,
            answers={200: ResponseOut},
            errors=(404,),
        ),
        Route(
            method="POST",
            path="/v1/responses/{response_id}/cancel",
            handler=cancel_response,
            answers={200: ResponseOut},
            errors=(400, 404),
        ),
    ]


async def keep_responses(app: web.Application) -> AsyncGenerator[None, None]:
    """For `cleanup_ctx`: what runs in the background ends with the application."""
    app[RESPONSES] = ResponseStore()
    yield
    await app[RESPONSES].close()


async def create_response(request: web.Request) -> web.StreamResponse:
    """Continue a conversation in the format of OpenAI's responses."""
    engine = ready_engine(request)
    store = request.app[RESPONSES]
    body = await read_json(request, RESPONSES_DECODER)
    check_model_name(body.model, engine.model.name)
    keeps = body.store is not False
    if body.background and (body.stream or not keeps):
        message = "A response in the background is neither streamed nor thrown away"
        raise InvalidRequest(message, param="background")
    if body.background and not store.has_room:
        raise QueueFull("too many responses run in the background")
    before = _conversation(store, body.previous_response_id, request[TENANT])
    head = new_head("resp", engine)
    parts = await chat_parts(request, chat_body(body, before), head.reply_id)
    on_end = store.end if keeps else _nobody
    reply_format = ResponsesFormat(head, body, parts.make_reader, on_end)
    generation = Generation(
        deltas=answer_deltas(request.app[CONTEXT], parts.requests, request[TENANT]),
        num_answers=1,
        usage=UsageMeter(1),
        reply_format=reply_format,
        done=b"",
        error_event=reply_format.failure,
    )
    kept = Kept(lambda: reply_format.response, [*before, *input_messages(body)], request[TENANT])
    if keeps:
        store.begin(head.reply_id, kept)
    if body.background:
        work = _in_background(generation, reply_format, request)
        kept.task = asyncio.create_task(work, name=head.reply_id)
        return _shown(reply_format.response)
    try:
        if body.stream:
            return await reply_streamed(request, generation, _STREAM_OPTIONS)
        return await reply_whole(request, generation)
    finally:
        if reply_format.response.status == "in_progress":  # refused, or its client left
            store.forget(head.reply_id)


async def get_response(request: web.Request) -> web.Response:
    """A response that was kept, or what there is of it so far."""
    return _shown(_kept(request).current())


async def cancel_response(request: web.Request) -> web.Response:
    """End a response that runs in the background; one that is complete stays as it is."""
    kept = _kept(request)
    if kept.task is not None:
        kept.task.cancel()
        await asyncio.gather(kept.task, return_exceptions=True)
    elif kept.current().status == "in_progress":
        raise InvalidRequest("Only responses in the background can be cancelled")
    return _shown(kept.current())


async def _in_background(
    generation: Generation, reply_format: ResponsesFormat, request: web.Request
) -> None:
    try:
        async with aclosing(generation.deltas) as deltas:
            async for index, delta in deltas:
                raise_if_error(delta.finish)
                reply_format.add(index, delta)
                generation.usage.update(index, delta.usage)
        reply_format.whole(generation.usage.total())
    except asyncio.CancelledError:
        reply_format.fail(internal_error(), "cancelled")
    except Exception as defect:
        error = defect if isinstance(defect, EngineError) else internal_error()
        if error is not defect:
            logger.exception("A defect broke request %s", request[REQUEST_ID])
        request.app[CONTEXT].metrics.error(error)
        reply_format.fail(error)


def _conversation(store: ResponseStore, previous_id: str | None, tenant: str) -> list[Message]:
    """Every turn up to and with the answer of an earlier response."""
    if previous_id is None:
        return []
    kept = store.get(previous_id, tenant)
    if kept is None or kept.current().status == "in_progress":
        raise InvalidRequest(
            f"There is no complete response {previous_id[:100]!r}",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return [*kept.before, *_answer_messages(kept.current())]


def _answer_messages(response: ResponseOut) -> list[Message]:
    """The answer as one turn; reasoning is left out, as templates do with earlier turns."""
    text = "".join(
        part.text
        for item in response.output
        if isinstance(item, MessageOut)
        for part in item.content
    )
    calls = [
        call_message(item.call_id, item.name, item.arguments)
        for item in response.output
        if isinstance(item, CallOut)
    ]
    if not text and not calls:
        return []
    return [Message(role="assistant", content=text, tool_calls=calls or None)]


def _kept(request: web.Request) -> Kept:
    response_id = request.match_info["response_id"]
    kept = request.app[RESPONSES].get(response_id, request[TENANT])
    if kept is None:
        raise RequestRefused(404, f"There is no response {response_id[:100]!r}", code="not_found")
    return kept


def _shown(response: ResponseOut) -> web.Response:
    return web.Response(body=msgspec.json.encode(response), content_type="application/json")


def _nobody(response: ResponseOut) -> None:
    pass
