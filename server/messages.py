"""The turns of a conversation and the tools that it may use, as OpenAI's chat format has them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from jaxsgl.interface import InvalidRequest

MAX_TOOLS = 128


class TextPart(Struct, frozen=True, tag="text", tag_field="type", forbid_unknown_fields=True):
    text: str


class CalledFunction(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    arguments: str
    """JSON; what is none is shown to the model as it is."""


class MessageToolCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None


class Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn. Clients send answers back as they got them, so what only an answer has may be null.

    `name` is accepted and without effect: chat templates have no place for it.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[MessageToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    """Of the call whose result this is."""
    reasoning_content: str | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class Function(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON Schema; without one there are no parameters."""
    strict: bool | None = None
    """Calls follow the schema even where the model is free to call or not."""


class Tool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Function


class NamedFunction(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str


class NamedTool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["auto", "none", "required"] | NamedTool


def call_message(call_id: str | None, name: str, arguments: str) -> MessageToolCall:
    return MessageToolCall(id=call_id, function=CalledFunction(name=name, arguments=arguments))


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates know them. Raises InvalidRequest."""
    return [_template_message(index, message) for index, message in enumerate(messages)]


def _template_message(index: int, message: Message) -> dict[str, Any]:
    """A role they all have, content as one text, arguments of calls as values."""
    if message.tool_calls and message.role != "assistant":
        param = f"messages[{index}].tool_calls"
        raise InvalidRequest("Only an assistant calls tools", param=param)
    content = message.content
    if content is None and not message.tool_calls:
        param = f"messages[{index}].content"
        raise InvalidRequest(f"{param} is required", param=param)
    text = content if isinstance(content, str) else "".join(part.text for part in content or ())
    role = "system" if message.role == "developer" else message.role
    shown: dict[str, Any] = {"role": role, "content": text}
    if message.tool_calls:
        shown["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    if message.reasoning_content:
        shown["reasoning_content"] = message.reasoning_content
    return shown


def _template_call(call: MessageToolCall) -> dict[str, Any]:
    try:
        arguments: Any = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = call.function.arguments
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
