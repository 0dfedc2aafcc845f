"""From the body of a response to a chat."""

from __future__ import annotations

from typing import Literal

import msgspec

from jaxsgl.answer_forms import GrammarFields, JsonObjectFormat, JsonSchemaFormat, NamedSchema
from jaxsgl.interface import InvalidRequest
from server.messages import (
    Function,
    Message,
    NamedFunction,
    NamedTool,
    Tool,
    ToolChoice,
    call_message,
)
from server.responses_schema import (
    CallItem,
    CallOutputItem,
    InputItem,
    InputText,
    MessageItem,
    NamedResponseTool,
    OutputText,
    ReasoningItem,
    ResponsesBody,
    ResponseTool,
    SchemaFormat,
    TextOptions,
)
from server.schema import ChatBody


def chat_body(body: ResponsesBody, before: list[Message]) -> ChatBody:
    """The same request as a chat that `before` began. Raises InvalidRequest."""
    messages = [*before, *input_messages(body)]
    if not messages:
        raise InvalidRequest("input has no message", param="input")
    if body.instructions is not None:
        messages.insert(0, Message(role="system", content=body.instructions))
    effort = None if body.reasoning is None else body.reasoning.effort
    grammars = {name: getattr(body, name) for name in GrammarFields.__struct_fields__}
    if (text_format := _response_format(body.text)) is not None:
        if body.response_format is not None:
            raise InvalidRequest("text.format and response_format exclude each other", param="text")
        grammars["response_format"] = text_format
    return ChatBody(
        messages=messages,
        model=body.model,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        stop=body.stop,
        tools=[_tool(tool) for tool in body.tools or ()],
        tool_choice=_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning_effort=effort,
        **grammars,
    )


def input_messages(body: ResponsesBody) -> list[Message]:
    """What the request says, as turns; calls and reasoning join the assistant's turn."""
    if isinstance(body.input, str):
        return [Message(role="user", content=body.input)]
    return item_messages(body.input)


def item_messages(items: list[InputItem]) -> list[Message]:
    messages: list[Message] = []
    reasoning = ""
    for item in items:
        match item:
            case MessageItem():
                said = Message(role=item.role, content=_text(item.content))
            case CallItem():
                call = call_message(item.call_id, item.name, item.arguments)
                said = Message(role="assistant", tool_calls=[call])
            case CallOutputItem():
                said = Message(role="tool", content=_text(item.output), tool_call_id=item.call_id)
            case ReasoningItem():
                reasoning += "".join(part.text for part in item.content or ())
                continue
        if said.role == "assistant" and reasoning:
            said = msgspec.structs.replace(said, reasoning_content=reasoning)
        reasoning = ""
        last = messages[-1] if messages else None
        if last is not None and last.role == "assistant" and said.tool_calls:
            calls = [*(last.tool_calls or ()), *said.tool_calls]
            messages[-1] = msgspec.structs.replace(last, tool_calls=calls)
        else:
            messages.append(said)
    return messages


def _text(content: str | list[InputText] | list[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _tool(tool: ResponseTool) -> Tool:
    function = Function(
        name=tool.name,
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict,
    )
    return Tool(type="function", function=function)


def _tool_choice(
    choice: Literal["auto", "none", "required"] | NamedResponseTool | None,
) -> ToolChoice | None:
    if isinstance(choice, NamedResponseTool):
        return NamedTool(type="function", function=NamedFunction(name=choice.name))
    return choice


def _response_format(text: TextOptions | None) -> JsonObjectFormat | JsonSchemaFormat | None:
    match None if text is None else text.format:
        case SchemaFormat(schema=schema, name=name, strict=strict):
            if bytes(schema) == b"null":
                raise InvalidRequest("text.format.schema is required", param="text.format.schema")
            return JsonSchemaFormat(
                json_schema=NamedSchema(schema=schema, name=name, strict=strict)
            )
        case JsonObjectFormat() as json_object:
            return json_object
        case _:
            return None
