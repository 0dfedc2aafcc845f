"""The words of the language that make expressions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_args

from jaxsgl.interface import (
    EbnfGrammar,
    GrammarSpec,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
)
from jaxsgl.lang.errors import ProgramError
from jaxsgl.lang.expressions import Expression, Gen, RoleBegin, RoleEnd, Select, SelectMethod, turn

DEFAULT_METHOD: SelectMethod = "token_length_normalized"

_METHODS: tuple[str, ...] = get_args(SelectMethod.__value__)


def _read_bool(text: str) -> bool:
    return text.strip().lower() == "true"


_TYPES: dict[type, tuple[str, Callable[[str], Any]]] = {
    int: (r" ?-?(0|[1-9][0-9]{0,17})", int),
    float: (r" ?-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?", float),
    bool: (r" ?([Tt]rue|[Ff]alse)", _read_bool),
    str: (r' ?"[^"\\\x00-\x1f]*"', json.loads),
}
"""By type of a variable: the form of its text, which may begin with a space, as words in a sentence
do, and what reads it."""


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    min_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    repetition_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    ignore_eos: bool | None = None,
    logprobs: int | None = None,
    regex: str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: SelectMethod | None = None,
    json_schema: Any = None,
    grammar: str | None = None,
    ebnf: str | None = None,
    dtype: type | None = None,
    strict_complete: bool | None = None,
    timeout_s: float | None = None,
) -> Expression:
    """Text that the model writes, as variable `name`.

    What is not given comes from the run, and then from `SamplingParams`; `max_tokens` is 128 unless
    one of them says otherwise. At most one form: a regular expression; `choices`, which makes it a
    `select`; a JSON Schema as dict, text or pydantic model, whose variable comes back parsed; a
    Lark grammar; an EBNF; or a `dtype`, int, float, bool or str, which is also the type of the
    variable. An answer with a form is led to an end of it before `max_tokens` cut it short, unless
    `strict_complete` is False. `timeout_s` bounds this answer alone.

    Raises ProgramError for two forms at once.
    """
    forms = {
        "regex": regex,
        "choices": choices,
        "json_schema": json_schema,
        "grammar": grammar,
        "ebnf": ebnf,
        "dtype": dtype,
    }
    given = [form for form, value in forms.items() if value is not None]
    if len(given) > 1:
        raise ProgramError(f"gen: {given[0]} and {given[1]} exclude each other")
    if choices is not None:
        if temperature:
            raise ProgramError("gen: choices are scored, not drawn; leave temperature out")
        return select(name, choices, choices_method=choices_method, timeout_s=timeout_s)
    if choices_method is not None:
        raise ProgramError("gen: choices_method needs choices")
    form, parse = _form(regex, json_schema, grammar, ebnf, dtype)
    fields = {
        "max_tokens": max_tokens,
        "stop": (stop,) if isinstance(stop, str) else stop and tuple(stop),
        "stop_token_ids": stop_token_ids and tuple(stop_token_ids),
        "min_tokens": min_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "repetition_penalty": repetition_penalty,
        "logit_bias": logit_bias and dict(logit_bias),
        "seed": seed,
        "ignore_eos": ignore_eos,
        "logprobs": logprobs,
        "grammar": form,
        "strict_complete": strict_complete if form is None or strict_complete is not None else True,
    }
    sampling = {field: value for field, value in fields.items() if value is not None}
    return Gen(name, sampling, parse, timeout_s)


def gen_int(name: str | None = None, **options: Any) -> Expression:
    """An integer, which the variable is."""
    return gen(name, dtype=int, **options)


def gen_string(name: str | None = None, **options: Any) -> Expression:
    """A text in double quotes; the variable is what stands between them."""
    return gen(name, dtype=str, **options)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    *,
    choices_method: SelectMethod | None = None,
    temperature: float = 0.0,
    timeout_s: float | None = None,
) -> Expression:
    """The likeliest of `choices`, as variable `name`.

    Raises ProgramError for no choices, an unknown method or a temperature other than 0.
    """
    if isinstance(choices, str) or not choices or not all(choices):
        raise ProgramError("select: choices must be a list of texts, none of them empty")
    if temperature:
        raise ProgramError("select: choices are scored, not drawn; temperature must be 0")
    method = choices_method or DEFAULT_METHOD
    if method not in _METHODS:
        raise ProgramError(f"select: choices_method {method!r} is not one of {', '.join(_METHODS)}")
    return Select(name, tuple(choices), method, timeout_s)


def system(content: Expression | str | None = None) -> Expression:
    """A whole turn of the system."""
    return turn("system", content)


def user(content: Expression | str | None = None) -> Expression:
    """A whole turn of the user."""
    return turn("user", content)


def assistant(content: Expression | str | None = None) -> Expression:
    """A whole turn of the assistant."""
    return turn("assistant", content)


def system_begin() -> Expression:
    return RoleBegin("system")


def system_end() -> Expression:
    return RoleEnd("system")


def user_begin() -> Expression:
    return RoleBegin("user")


def user_end() -> Expression:
    return RoleEnd("user")


def assistant_begin() -> Expression:
    return RoleBegin("assistant")


def assistant_end() -> Expression:
    return RoleEnd("assistant")


def _form(
    regex: str | None, json_schema: Any, grammar: str | None, ebnf: str | None, dtype: type | None
) -> tuple[GrammarSpec | None, Callable[[str], Any] | None]:
    """The form of a text, and what reads it."""
    if dtype is not None:
        if dtype not in _TYPES:
            raise ProgramError(f"gen: dtype {dtype!r} is not one of int, float, bool and str")
        pattern, parse = _TYPES[dtype]
        return RegexGrammar(pattern), parse
    if json_schema is not None:
        schema, parse = _schema(json_schema)
        return JsonSchemaGrammar(schema), parse
    if regex is not None:
        return RegexGrammar(regex), None
    if grammar is not None:
        return LarkGrammar(grammar), None
    return (None if ebnf is None else EbnfGrammar(ebnf)), None


def _schema(schema: Any) -> tuple[str, Callable[[str], Any]]:
    """A schema as text, and what reads JSON of it."""
    if isinstance(schema, str):
        return schema, json.loads
    if isinstance(schema, Mapping):
        return json.dumps(schema), json.loads
    if hasattr(schema, "model_json_schema") and hasattr(schema, "model_validate_json"):
        return json.dumps(schema.model_json_schema()), cast(Any, schema).model_validate_json
    raise ProgramError("gen: json_schema must be a dict, a JSON text or a pydantic model")
