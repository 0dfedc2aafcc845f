"""/tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from jaxsgl.interface import TextPrompt
from server.context import ready_engine
from server.json_body import read_json
from server.native.generate_body import TokenId
from server.native.generate_requests import one_or_many
from server.replying import json_response
from server.requests import check_model_name
from server.route import Route
from server.schema import MAX_CHOICES

Texts = Annotated[list[str], Meta(min_length=1, max_length=MAX_CHOICES)]


class TokenizeBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize. Control tokens written in the text stay ordinary characters."""

    prompt: str | Texts
    model: str | None = None
    add_special_tokens: bool = True
    """With what the model wants around every prompt."""


class TokenizeReply(Struct, frozen=True):
    """Of a batch, lists of both."""

    tokens: Sequence[int | list[int]]
    count: int | list[int]
    max_model_len: int


class DetokenizeBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize"""

    tokens: Annotated[list[TokenId | list[TokenId]], Meta(min_length=1)]
    model: str | None = None
    skip_special_tokens: bool = True


class DetokenizeReply(Struct, frozen=True):
    text: str | list[str]
    """With U+FFFD for bytes that are no whole character."""


TOKENIZE_DECODER = msgspec.json.Decoder(TokenizeBody)
DETOKENIZE_DECODER = msgspec.json.Decoder(DetokenizeBody)


def token_routes() -> list[Route]:
    errors = (404, 429, 503)
    return [
        Route(
            method="POST",
            path=path,
            handler=handler,
            body=decoder,
            answers={200: reply},
            errors=errors,
        )
        for prefix in ("", "/v1")
        for path, handler, decoder, reply in (
            (f"{prefix}/tokenize", tokenize, TOKENIZE_DECODER, TokenizeReply),
            (f"{prefix}/detokenize", detokenize, DETOKENIZE_DECODER, DetokenizeReply),
        )
    ]


async def tokenize(request: web.Request) -> web.Response:
    """The token ids of a text or of several, as a prompt has them; empty for an empty text."""
    engine = ready_engine(request)
    body = await read_json(request, TOKENIZE_DECODER)
    check_model_name(body.model, engine.model.name)
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt

    async def ids_of(text: str) -> list[int]:
        if not text:
            return []
        return await engine.encode(TextPrompt(text, add_special_tokens=body.add_special_tokens))

    ids = await asyncio.gather(*map(ids_of, texts))
    context_len = engine.model.context_len
    if isinstance(body.prompt, str):
        return json_response(TokenizeReply(ids[0], len(ids[0]), context_len))
    return json_response(TokenizeReply(ids, [len(each) for each in ids], context_len))


async def detokenize(request: web.Request) -> web.Response:
    """The text of token ids, or of several lists of them."""
    engine = ready_engine(request)
    body = await read_json(request, DETOKENIZE_DECODER)
    check_model_name(body.model, engine.model.name)
    ids, lists = one_or_many(body.tokens, "tokens")
    skip = body.skip_special_tokens
    texts = await asyncio.gather(
        *(engine.decode(each, skip_special_tokens=skip) for each in lists or [ids])
    )
    return json_response(DetokenizeReply(texts if lists else texts[0]))
