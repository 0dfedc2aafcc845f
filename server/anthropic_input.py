"""From the body of a message to a chat."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from jaxsgl.interface import InvalidRequest
from server.anthropic_schema import (
    AnthropicTool,
    AnthropicToolChoice,
    CountBody,
    MessagesBody,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from server.messages import (
    Function,
    Message,
    MessageToolCall,
    NamedFunction,
    NamedTool,
    Tool,
    ToolChoice,
    call_message,
)
from server.schema import ChatBody


def chat_body(body: MessagesBody | CountBody) -> ChatBody:
    """The same request as a chat. Raises InvalidRequest."""
    choice = body.tool_choice
    messages = [message for turn in body.messages for message in _messages(turn)]
    if body.system:
        messages.insert(0, Message(role="system", content=_text(body.system)))
    variables: dict[str, Any] | None = None
    if body.thinking is not None:
        variables = {"enable_thinking": body.thinking.type != "disabled"}
    chat = ChatBody(
        messages=messages,
        model=body.model,
        tools=[Tool(type="function", function=_function(tool)) for tool in body.tools or ()],
        tool_choice=None if choice is None else _tool_choice(choice),
        parallel_tool_calls=not (choice is not None and choice.disable_parallel_tool_use),
        chat_template_kwargs=variables,
    )
    if isinstance(body, CountBody):
        return chat
    return msgspec.structs.replace(
        chat,
        max_tokens=body.max_tokens,
        stop=body.stop_sequences,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stream=body.stream,
    )


def _messages(turn: Turn) -> list[Message]:
    """Results of tools are messages of their own, before what else the turn says."""
    if isinstance(turn.content, str):
        return [Message(role=turn.role, content=turn.content)]
    results: list[Message] = []
    calls: list[MessageToolCall] = []
    text = thinking = ""
    for block in turn.content:
        match block:
            case TextBlock():
                text += block.text
            case ThinkingBlock():
                thinking += block.thinking
            case ToolUseBlock():
                arguments = json.dumps(block.input, ensure_ascii=False)
                calls.append(call_message(block.id, block.name, arguments))
            case ToolResultBlock():
                content = _text(block.content or "")
                result = Message(role="tool", content=content, tool_call_id=block.tool_use_id)
                results.append(result)
    if turn.role == "user" and (calls or thinking):
        raise InvalidRequest("A user neither calls tools nor thinks", param="messages")
    if turn.role == "assistant" and results:
        raise InvalidRequest("Results of tools are in a user's turn", param="messages")
    if not text and not calls and results:
        return results
    said = Message(
        role=turn.role,
        content=text,
        tool_calls=calls or None,
        reasoning_content=thinking or None,
    )
    return [*results, said]


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _function(tool: AnthropicTool) -> Function:
    return Function(
        name=tool.name,
        description=tool.description,
        parameters=tool.input_schema,
        strict=tool.strict,
    )


def _tool_choice(choice: AnthropicToolChoice) -> ToolChoice:
    match choice.type:
        case "tool":
            if choice.name is None:
                raise InvalidRequest("tool_choice.name is required", param="tool_choice.name")
            return NamedTool(type="function", function=NamedFunction(name=choice.name))
        case "any":
            return "required"
        case "none":
            return "none"
        case "auto":
            return "auto"
