"""The request bodies and answers of Anthropic's messages API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from server.messages import (
    MAX_TOOLS,
)
from server.schema import MAX_MESSAGES


class _Block(Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """`cache_control` is accepted and without effect: every prefix is cached."""

    cache_control: dict[str, Any] | None = None


class TextBlock(_Block, frozen=True, kw_only=True, tag="text"):
    text: str
    citations: None = None


class ToolUseBlock(_Block, frozen=True, kw_only=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(_Block, frozen=True, kw_only=True, tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


class ThinkingBlock(_Block, frozen=True, kw_only=True, tag="thinking"):
    thinking: str
    signature: str | None = None


Block = TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock


class Turn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class AnthropicTool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None


class AnthropicToolChoice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    """Accepted and without effect."""


class _AskBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnthropicTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None


class CountBody(_AskBody, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens"""


class MessagesBody(_AskBody, frozen=True, kw_only=True):
    """POST /v1/messages"""

    max_tokens: Annotated[int, Meta(ge=1)]
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    """Like `service_tier`, accepted and without effect."""
    service_tier: str | None = None


COUNT_DECODER = msgspec.json.Decoder(CountBody)
MESSAGES_DECODER = msgspec.json.Decoder(MessagesBody)


class TextOut(Struct, frozen=True, tag="text", tag_field="type"):
    text: str


class ThinkingOut(Struct, frozen=True, tag="thinking", tag_field="type"):
    thinking: str
    signature: str = ""


class ToolUseOut(Struct, frozen=True, tag="tool_use", tag_field="type"):
    id: str
    name: str
    input: msgspec.Raw


BlockOut = TextOut | ThinkingOut | ToolUseOut


class UsageOut(Struct, frozen=True):
    input_tokens: int
    """Those that were not cached."""
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class MessageOut(Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[BlockOut]
    stop_reason: str | None
    stop_sequence: str | None
    usage: UsageOut


class CountOut(Struct, frozen=True):
    input_tokens: int


class EventOut(Struct, frozen=True, kw_only=True):
    """An event of a streamed answer; `type` says which members it has."""

    type: str
    index: int | UnsetType = UNSET
    message: MessageOut | UnsetType = UNSET
    content_block: BlockOut | UnsetType = UNSET
    delta: dict[str, Any] | UnsetType = UNSET
    usage: UsageOut | UnsetType = UNSET
