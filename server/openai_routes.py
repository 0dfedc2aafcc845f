"""The OpenAI-style routes: /v1/chat/completions, /v1/completions, /v1/models."""

from __future__ import annotations

import msgspec
from aiohttp import web

from jaxsgl.interface import EngineClient, TextPrompt, TokenPrompt
from server.chat_plan import Plan, new_head, plan_chat, reply
from server.chat_reply import ChatChunk, ChatCompletion
from server.completion_format import Completion, CompletionFormat, Echo
from server.context import CONTEXT, ready_engine
from server.json_body import read_json
from server.replies import UsageMeter
from server.replying import json_response
from server.requests import (
    check_choices,
    check_model_name,
    completion_prompts,
    completion_requests,
)
from server.route import GENERATION_ERRORS, Route
from server.schema import CHAT_DECODER, COMPLETION_DECODER


def openai_routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/v1/chat/completions",
            handler=chat_completions,
            body=CHAT_DECODER,
            answers={200: ChatCompletion},
            events=ChatChunk,
            errors=GENERATION_ERRORS,
        ),
        Route(
            method="POST",
            path="/v1/completions",
            handler=completions,
            body=COMPLETION_DECODER,
            answers={200: Completion},
            events=Completion,
            errors=GENERATION_ERRORS,
        ),
        Route(
            method="GET",
            path="/v1/models",
            handler=list_models,
            answers={200: ModelList},
            errors=(503,),
        ),
        Route(
            method="GET",
            path="/v1/models/{model:.+}",
            handler=show_model,
            answers={200: ModelCard},
            errors=(404, 503),
        ),
    ]


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Continue a conversation."""
    engine = ready_engine(request)
    body = await read_json(request, CHAT_DECODER)
    check_model_name(body.model, engine.model.name)
    head = new_head("chatcmpl", engine)
    return await reply(request, await plan_chat(request, body, head), body)


async def completions(request: web.Request) -> web.StreamResponse:
    """Continue texts or lists of token ids."""
    engine = ready_engine(request)
    body = await read_json(request, COMPLETION_DECODER)
    check_model_name(body.model, engine.model.name)
    head = new_head("cmpl", engine)
    prompts = completion_prompts(body.prompt)
    echoes: list[Echo] = []
    shown_ids: list[list[int]] = []
    if body.echo or body.return_token_ids:
        check_choices((body.best_of or body.n or 1) * len(prompts))  # before so many are encoded
    if body.echo:
        echoes = [await _echo(engine, prompt) for prompt in prompts]
        prompts = [TokenPrompt(echo.token_ids) for echo in echoes]
    if body.return_token_ids:
        shown_ids = [await engine.encode(prompt) for prompt in prompts]
        prompts = [TokenPrompt(ids) for ids in shown_ids]
    requests = completion_requests(body, head.reply_id, engine.model, prompts)
    n = body.n or 1
    reply_format = CompletionFormat(
        head,
        engine.token_bytes,
        n=n,
        best_of=body.best_of or n,
        echoes=echoes,
        with_logprobs=body.logprobs is not None,
        shown_ids=shown_ids,
    )
    usage = UsageMeter(body.best_of or n)
    return await reply(request, Plan(requests, reply_format, usage), body)


async def _echo(engine: EngineClient, prompt: TextPrompt | TokenPrompt) -> Echo:
    token_ids = await engine.encode(prompt)
    if isinstance(prompt, TextPrompt):
        return Echo(prompt.text, token_ids)
    data = b"".join(map(engine.token_bytes, token_ids))
    return Echo(data.decode(errors="replace"), token_ids)


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "jaxsgl"
    max_model_len: int
    """Longest sequence in tokens, prompt and answer together."""


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[ModelCard]


async def list_models(request: web.Request) -> web.Response:
    """The served model, in a list."""
    return json_response(ModelList(data=[_model_card(request)]))


async def show_model(request: web.Request) -> web.Response:
    """The served model, by its name."""
    card = _model_card(request)
    check_model_name(request.match_info["model"], card.id)
    return json_response(card)


def _model_card(request: web.Request) -> ModelCard:
    model = ready_engine(request).model
    started_at = request.app[CONTEXT].started_at
    return ModelCard(id=model.name, created=started_at, max_model_len=model.context_len)
