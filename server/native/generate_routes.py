"""POST /generate."""

from __future__ import annotations

import uuid

from aiohttp import web

from server.context import CONTEXT, TENANT, ready_engine
from server.deltas import answer_deltas
from server.json_body import read_json
from server.native.generate_body import GENERATE_DECODER
from server.native.generate_format import GenerateFormat, GenerateReply
from server.native.generate_requests import native_requests, wants_list
from server.replies import UsageMeter
from server.replying import Generation, reply_streamed, reply_whole
from server.route import GENERATION_ERRORS, Route
from server.schema import StreamOptions


def generate_routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/generate",
            handler=generate,
            body=GENERATE_DECODER,
            answers={200: GenerateReply | list[GenerateReply]},
            events=GenerateReply,
            errors=GENERATION_ERRORS,
        )
    ]


async def generate(request: web.Request) -> web.StreamResponse:
    """Continue one prompt or a batch of them, as SGLang's route of that name does."""
    engine = ready_engine(request)
    body = await read_json(request, GENERATE_DECODER)
    asked = await native_requests(body, engine, uuid.uuid4().hex)
    requests = [each.request for each in asked]
    generation = Generation(
        deltas=answer_deltas(request.app[CONTEXT], requests, request[TENANT]),
        num_answers=len(requests),
        usage=UsageMeter(1),
        reply_format=GenerateFormat(
            asked,
            engine.token_bytes,
            as_list=wants_list(body, asked),
            with_text=bool(body.return_text_in_logprobs),
            gpu_count=engine.num_devices,
        ),
    )
    if body.stream:
        return await reply_streamed(request, generation, StreamOptions())
    return await reply_whole(request, generation)
