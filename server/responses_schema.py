"""The request body, the objects and the events of OpenAI's responses API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from jaxsgl.answer_forms import (
    JsonObjectFormat,
    TextFormat,
)
from server.messages import (
    MAX_TOOLS,
)
from server.schema import MAX_MESSAGES, IgnoredFields


class _Part(Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    text: str


class InputText(_Part, frozen=True, kw_only=True, tag="input_text"):
    pass


class OutputText(_Part, frozen=True, kw_only=True, tag="output_text"):
    annotations: list[Any] = []
    logprobs: list[Any] | None = None


class ReasoningText(_Part, frozen=True, kw_only=True, tag="reasoning_text"):
    pass


class _Item(Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    id: str | None = None
    status: str | None = None


class MessageItem(_Item, frozen=True, kw_only=True, tag="message"):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText | OutputText]
    phase: str | None = None


class CallItem(_Item, frozen=True, kw_only=True, tag="function_call"):
    call_id: str
    name: str
    arguments: str


class CallOutputItem(_Item, frozen=True, kw_only=True, tag="function_call_output"):
    call_id: str
    output: str | list[InputText]


class ReasoningItem(_Item, frozen=True, kw_only=True, tag="reasoning"):
    summary: list[Any] = []
    content: list[ReasoningText] | None = None
    encrypted_content: None = None


InputItem = MessageItem | CallItem | CallOutputItem | ReasoningItem


class ResponseTool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedResponseTool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    name: str


class SchemaFormat(
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag="json_schema",
    tag_field="type",
):
    schema: Raw
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class TextOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: TextFormat | JsonObjectFormat | SchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Accepted and without effect."""


class ReasoningOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Like `generate_summary`, accepted and without effect: there are no summaries."""
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesBody(IgnoredFields, frozen=True, kw_only=True):
    """POST /v1/responses"""

    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedResponseTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    stream: bool | None = None
    stream_options: dict[Literal["include_obfuscation"], bool] | None = None
    background: bool | None = None
    """Answer at once, generate on, and keep the answer for GET."""
    truncation: Literal["disabled"] | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    """Accepted and without effect: reasoning is not encrypted."""


RESPONSES_DECODER = msgspec.json.Decoder(ResponsesBody)


class InputTokensDetails(Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class MessageOut(Struct, frozen=True, kw_only=True, tag="message", tag_field="type"):
    id: str
    status: str
    role: str = "assistant"
    content: list[OutputText]


class CallOut(Struct, frozen=True, kw_only=True, tag="function_call", tag_field="type"):
    id: str
    status: str
    call_id: str
    name: str
    arguments: str


class ReasoningOut(Struct, frozen=True, kw_only=True, tag="reasoning", tag_field="type"):
    id: str
    status: str
    summary: list[Any] = []
    content: list[ReasoningText]


ItemOut = MessageOut | CallOut | ReasoningOut


class ResponseError(Struct, frozen=True):
    code: str
    message: str


class IncompleteDetails(Struct, frozen=True):
    reason: str


class ResponseOut(Struct, frozen=True, kw_only=True):
    id: str
    object: str = "response"
    created_at: int
    status: str
    """in_progress, completed, incomplete, failed or cancelled."""
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[ItemOut]
    parallel_tool_calls: bool
    previous_response_id: str | None
    temperature: float | None
    top_p: float | None
    tool_choice: Literal["auto", "none", "required"] | NamedResponseTool
    tools: list[ResponseTool]
    text: dict[str, Any] = {}
    truncation: str = "disabled"
    background: bool
    usage: ResponseUsage | None = None


class ResponseEvent(Struct, frozen=True, kw_only=True):
    """An event of a streamed response; `type` says which members it has."""

    type: str
    sequence_number: int
    response: ResponseOut | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    item: ItemOut | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    part: OutputText | ReasoningText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[Any] | UnsetType = UNSET
    code: str | UnsetType = UNSET
    message: str | UnsetType = UNSET
    param: str | UnsetType | None = UNSET
