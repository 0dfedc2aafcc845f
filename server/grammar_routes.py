"""POST /v1/grammars/check: what a grammar means, for those who write one."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from jaxsgl.answer_forms import GrammarFields, grammar_of
from jaxsgl.interface import GrammarReport, InvalidRequest, TerminalReport
from server.context import ready_engine
from server.json_body import read_json
from server.requests import check_model_name
from server.route import ENGINE_ERRORS, Route

MAX_PREFIX_LEN = 1 << 16


class CheckBody(GrammarFields, frozen=True, kw_only=True):
    """A grammar in any field that a completion takes, and the beginning of an answer."""

    model: str | None = None
    prefix: Annotated[str, Meta(max_length=MAX_PREFIX_LEN)] = ""


CHECK_DECODER = msgspec.json.Decoder(CheckBody)


class AllowedToken(msgspec.Struct, frozen=True):
    id: int
    text: str
    """With U+FFFD for what is no whole character."""
    bytes: list[int]


class CheckReply(msgspec.Struct, frozen=True, kw_only=True):
    """See `interface.GrammarReport`."""

    object: str = "grammar.check"
    engine: str
    compile_ms: float
    terminals: list[TerminalReport]
    conflicts: list[str]
    warnings: list[str]
    prefix_taken_bytes: int
    prefix_fits: bool
    can_end: bool
    num_allowed_tokens: int
    allowed_tokens: list[AllowedToken]
    forced: str
    forced_bytes: list[int]
    error: str | None


def grammar_routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/v1/grammars/check",
            handler=check_grammar,
            body=CHECK_DECODER,
            answers={200: CheckReply},
            errors=(*ENGINE_ERRORS, 404),
        )
    ]


async def check_grammar(request: web.Request) -> web.Response:
    """What a grammar means, and what may follow a prefix; 400 if it cannot be served."""
    engine = ready_engine(request)
    body = await read_json(request, CHECK_DECODER)
    check_model_name(body.model, engine.model.name)
    grammar = grammar_of(body)
    if grammar is None:
        raise InvalidRequest("There is no grammar in the body")
    prefix = body.prefix.encode()
    report = await engine.check_grammar(grammar, prefix)
    reply = msgspec.json.encode(_reply(report, len(prefix)))
    return web.Response(body=reply, content_type="application/json")


def _reply(report: GrammarReport, prefix_len: int) -> CheckReply:
    return CheckReply(
        engine=report.engine,
        compile_ms=round(report.compile_ms, 3),
        terminals=report.terminals,
        conflicts=report.conflicts,
        warnings=report.warnings,
        prefix_taken_bytes=report.prefix_taken_len,
        prefix_fits=report.prefix_taken_len == prefix_len,
        can_end=report.can_end,
        num_allowed_tokens=report.num_allowed_tokens,
        allowed_tokens=[
            AllowedToken(token_id, _text(data), list(data))
            for token_id, data in report.allowed_tokens
        ],
        forced=_text(report.forced),
        forced_bytes=list(report.forced),
        error=report.error,
    )


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
