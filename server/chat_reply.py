"""What /v1/chat/completions answers with, whole and in events."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Struct, UnsetType

from server.logprobs import ChatLogprobs
from server.replies import UsageBody


class FunctionCall(Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(Struct, frozen=True):
    id: str
    type: str
    function: FunctionCall


class ChatMessage(Struct, frozen=True):
    content: str | None
    """None where there is nothing but calls."""
    role: str = "assistant"
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    matched_stop: str | int | None
    """The stop text or token id that ended the answer, where one did."""
    stop_reason: str | int | None


class ChatCompletion(Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    gpu_count: int = msgspec.field(name="x-sglang-gpu-count")
    object: str = "chat.completion"


class FunctionDelta(Struct, frozen=True, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Struct, frozen=True, omit_defaults=True):
    """The first one of a call has its name, the others more of its arguments."""

    index: int
    function: FunctionDelta
    id: str | None = None
    type: str | None = None


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(Struct, frozen=True, omit_defaults=True):
    index: int
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    delta: ChatDelta
    matched_stop: str | int | None = None
    stop_reason: str | int | None = None


class ChatChunk(Struct, frozen=True, omit_defaults=True):
    id: str
    object: str
    created: int
    model: str
    choices: Sequence[ChatChunkChoice]
    usage: UsageBody | None = None
