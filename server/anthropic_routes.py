"""Anthropic's messages API: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import functools

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from jaxsgl.interface import EngineError
from server.anthropic_format import (
    AnthropicFormat,
    anthropic_error_body,
    anthropic_error_event,
)
from server.anthropic_input import chat_body
from server.anthropic_schema import (
    COUNT_DECODER,
    MESSAGES_DECODER,
    CountOut,
    EventOut,
    MessageOut,
)
from server.chat_plan import chat_parts, chat_prompt_of, new_head
from server.context import CONTEXT, TENANT, ready_engine
from server.deltas import answer_deltas
from server.errors import error_response
from server.json_body import read_json
from server.replies import UsageMeter
from server.replying import Generation, reply_streamed, reply_whole
from server.requests import check_model_name
from server.route import GENERATION_ERRORS, Route
from server.schema import StreamOptions

_STREAM_OPTIONS = StreamOptions(include_usage=True, continuous_usage_stats=True)


def anthropic_routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/v1/messages",
            handler=messages,
            body=MESSAGES_DECODER,
            answers={200: MessageOut},
            events=EventOut,
            errors=GENERATION_ERRORS,
        ),
        Route(
            method="POST",
            path="/v1/messages/count_tokens",
            handler=count_tokens,
            body=COUNT_DECODER,
            answers={200: CountOut},
            errors=GENERATION_ERRORS,
        ),
    ]


def _with_anthropic_errors(handler: Handler) -> Handler:
    """Their clients look for `type` beside `error`."""

    @functools.wraps(handler)
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except EngineError as error:
            request.app[CONTEXT].metrics.error(error)
            return error_response(error, anthropic_error_body)

    return handle


@_with_anthropic_errors
async def messages(request: web.Request) -> web.StreamResponse:
    """Continue a conversation in Anthropic's format."""
    engine = ready_engine(request)
    body = await read_json(request, MESSAGES_DECODER)
    check_model_name(body.model, engine.model.name)
    head = new_head("msg", engine)
    parts = await chat_parts(request, chat_body(body), head.reply_id)
    generation = Generation(
        deltas=answer_deltas(request.app[CONTEXT], parts.requests, request[TENANT]),
        num_answers=1,
        usage=UsageMeter(1),
        reply_format=AnthropicFormat(head, parts.make_reader),
        done=b"",
        error_event=anthropic_error_event,
    )
    if body.stream:
        return await reply_streamed(request, generation, _STREAM_OPTIONS)
    return await reply_whole(request, generation)


@_with_anthropic_errors
async def count_tokens(request: web.Request) -> web.Response:
    """How many tokens a conversation is, without generating any."""
    engine = ready_engine(request)
    body = await read_json(request, COUNT_DECODER)
    check_model_name(body.model, engine.model.name)
    prompt, _ = chat_prompt_of(request, chat_body(body))
    count = CountOut(len(await engine.encode(prompt)))
    return web.Response(body=msgspec.json.encode(count), content_type="application/json")
