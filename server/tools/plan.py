"""What tools mean for a request: what the model is told, what its answer is held to, how that is
read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from jaxsgl.interface import InvalidRequest, JsonSchemaGrammar
from server.messages import Function, NamedTool, ToolChoice
from server.tools.formats import (
    FORMATS,
    WRITTEN_BY_CONTROL_TOKENS,
    Format,
    TextParser,
    arguments_of,
    only_calls,
)

_NO_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPlan:
    shown: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The tools as chat templates know them."""
    format: Format | None = None
    """How calls are read; None where there are no tools to call."""
    grammar: JsonSchemaGrammar | None = None
    """What the answer is held to, or the calls in it."""
    grammar_after: str | None = None
    """The mark behind which the grammar begins, again and again; None: it is the whole answer."""
    control_tokens: bool = False
    """Whether the marks of calls are control tokens, which then must be in the text."""
    one_call: bool = False
    is_named: bool = False
    """The client says which function is called: that the model stops there is no news."""

    def parser(self) -> TextParser | None:
        """For one answer."""
        return None if self.format is None else TextParser(self.format, one_call=self.one_call)


def plan_tools(
    functions: Sequence[Function],
    choice: ToolChoice | None,
    *,
    parallel: bool,
    format_name: str,
    has_grammar: bool,
) -> ToolPlan:
    """`format_name` is one of FORMATS; `has_grammar` says that the request asks for a form of the
    whole answer. Raises InvalidRequest for what cannot be had."""
    if not functions or choice == "none":
        if not functions and choice not in (None, "auto", "none"):
            raise InvalidRequest("tool_choice needs tools", param="tool_choice")
        return ToolPlan()
    if len({function.name for function in functions}) < len(functions):
        raise InvalidRequest("Two tools have the same name", param="tools")
    if has_grammar:
        message = "A form of the answer and tools exclude each other, unless tool_choice is none"
        raise InvalidRequest(message, param="tools")
    shown = [{"type": "function", "function": _shown(function)} for function in functions]
    if isinstance(choice, NamedTool):
        function = _named(functions, choice.function.name)
        return ToolPlan(
            shown=shown,
            format=arguments_of(function.name),
            grammar=_grammar(_parameters(function)),
            is_named=True,
        )
    if choice == "required":
        return ToolPlan(
            shown=shown,
            format=only_calls,
            grammar=_grammar(_calls_schema(functions, parallel=parallel)),
        )
    grammar = None
    if any(function.strict for function in functions):
        if FORMATS[format_name] is not FORMATS["hermes"]:
            message = f"strict tools in the {format_name} format need tool_choice required or named"
            raise InvalidRequest(message, param="tools")
        grammar = _grammar(_call_schema(functions, only_strict=True))
    return ToolPlan(
        shown=shown,
        format=FORMATS[format_name],
        grammar=grammar,
        grammar_after=None if grammar is None else "<tool_call>",
        control_tokens=format_name in WRITTEN_BY_CONTROL_TOKENS,
        one_call=not parallel,
    )


def _shown(function: Function) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        shown["description"] = function.description
    shown["parameters"] = function.parameters or _NO_PARAMETERS
    return shown


def _named(functions: Sequence[Function], name: str) -> Function:
    for function in functions:
        if function.name == name:
            return function
    raise InvalidRequest(f"There is no tool {name[:100]!r}", param="tool_choice")


def _parameters(function: Function) -> dict[str, Any]:
    """Of the schema of a function, arguments are an object whatever it says."""
    return {"type": "object", **(function.parameters or _NO_PARAMETERS)}


def _calls_schema(functions: Sequence[Function], *, parallel: bool) -> dict[str, Any]:
    call = _call_schema(functions)
    definitions = call.pop("$defs")
    most = {} if parallel else {"maxItems": 1}
    return {"type": "array", "minItems": 1, **most, "items": call, "$defs": definitions}


def _call_schema(functions: Sequence[Function], *, only_strict: bool = False) -> dict[str, Any]:
    """An object with the name of a function and its arguments. With `only_strict`, those of other
    functions are any object."""
    definitions: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for index, function in enumerate(functions):
        arguments: dict[str, Any] = {"type": "object"}
        if function.strict or not only_strict:
            name = f"tool{index}"
            definitions[name] = _moved(_parameters(function), f"#/$defs/{name}")
            arguments = {"$ref": f"#/$defs/{name}"}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls, "$defs": definitions}


def _moved(schema: Any, place: str) -> Any:
    """A schema with its references to itself leading to `place`."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in cast(list[Any], schema)]
    if not isinstance(schema, dict):
        return schema
    moved: dict[str, Any] = {}
    for key, value in cast(dict[str, Any], schema).items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = place + value[1:]
        else:
            moved[key] = _moved(value, place)
    return moved


def _grammar(schema: dict[str, Any]) -> JsonSchemaGrammar:
    return JsonSchemaGrammar(json.dumps(schema, ensure_ascii=False))
