"""From the body of a chat to what the engine is asked and how its answers are shown."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from aiohttp import web

from jaxsgl.answer_forms import grammar_of
from jaxsgl.interface import (
    ChatPrompt,
    GenerateRequest,
    Prompt,
    ServedEngine,
    TokenPrompt,
)
from server.answer_reader import AnswerReader
from server.chat_format import ChatFormat
from server.context import CONTEXT, TENANT
from server.deltas import answer_deltas
from server.reasoning import ReasoningFormat, ReasoningSplitter, is_open
from server.replies import ReplyFormat, ReplyHead, UsageMeter
from server.replying import Generation, reply_streamed, reply_whole
from server.requests import answer_form, chat_prompt, chat_requests
from server.schema import ChatBody, GenerationBody, StreamOptions
from server.tools.plan import ToolPlan, plan_tools

PROMPT_END_LEN = 64
"""Tokens at the end of a prompt that tell whether its answer begins with reasoning."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the engine is asked for one HTTP request, and how its answers are shown."""

    requests: list[GenerateRequest]
    reply_format: ReplyFormat
    usage: UsageMeter


@dataclass(frozen=True, slots=True)
class ChatParts:
    """A chat before it is known how its answers are shown."""

    requests: list[GenerateRequest]
    tools: ToolPlan
    make_reader: Callable[[], AnswerReader] | None
    """None where answers are nothing but content."""
    reasons: bool
    """Whether reasoning is told apart."""


def chat_prompt_of(request: web.Request, body: ChatBody) -> tuple[ChatPrompt, ToolPlan]:
    """Raises InvalidRequest."""
    context = request.app[CONTEXT]
    engine, config = context.engine, context.config
    tools = plan_tools(
        [tool.function for tool in body.tools or ()],
        body.tool_choice,
        parallel=body.parallel_tool_calls is not False,
        format_name=engine.model.tool_format
        if config.tool_call_parser == "auto"
        else config.tool_call_parser,
        has_grammar=grammar_of(body) is not None,
    )
    return chat_prompt(body, engine.model, tools), tools


async def chat_parts(request: web.Request, body: ChatBody, reply_id: str) -> ChatParts:
    """Raises EngineError."""
    context = request.app[CONTEXT]
    engine, config = context.engine, context.config
    prompt: Prompt
    prompt, tools = chat_prompt_of(request, body)
    opened: bool | None = None
    reasons = config.reasoning_parser is not None
    if reasons:
        token_ids = await engine.encode(prompt)
        prompt = TokenPrompt(token_ids, "messages")
        end = b"".join(map(engine.token_bytes, token_ids[-PROMPT_END_LEN:]))
        reasoning_format = cast(ReasoningFormat, config.reasoning_parser)
        opened = is_open(reasoning_format, end.decode(errors="replace"))
    form = answer_form(tools, grammar_of(body), opened, reasons=reasons)
    requests = chat_requests(body, reply_id, engine.model, prompt, tools, form)
    separates = reasons and body.separate_reasoning is not False

    def make_reader() -> AnswerReader:
        return AnswerReader(ReasoningSplitter(opened) if separates else None, tools.parser())

    reads = separates or tools.format is not None
    return ChatParts(requests, tools, make_reader if reads else None, separates)


async def plan_chat(request: web.Request, body: ChatBody, head: ReplyHead) -> Plan:
    """Raises EngineError."""
    parts = await chat_parts(request, body, head.reply_id)
    reply_format = ChatFormat(
        head,
        request.app[CONTEXT].engine.token_bytes,
        parts.make_reader,
        calls_end=not parts.tools.is_named,
    )
    counts = reply_format.num_reasoning_tokens if parts.reasons else None
    return Plan(parts.requests, reply_format, UsageMeter(body.n or 1, counts))


async def reply(request: web.Request, plan: Plan, body: GenerationBody) -> web.StreamResponse:
    """Generate, and answer whole or in events."""
    context = request.app[CONTEXT]
    generation = Generation(
        deltas=answer_deltas(context, plan.requests, request[TENANT]),
        num_answers=len(plan.requests),
        usage=plan.usage,
        reply_format=plan.reply_format,
    )
    if body.stream:
        return await reply_streamed(request, generation, body.stream_options or StreamOptions())
    return await reply_whole(request, generation)


def new_head(prefix: str, engine: ServedEngine) -> ReplyHead:
    model = engine.model
    reply_id = f"{prefix}-{uuid.uuid4().hex}"
    return ReplyHead(
        reply_id, int(time.time()), model.name, engine.num_devices, model.eos_token_ids
    )
