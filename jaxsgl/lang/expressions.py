"""What `s += …` takes: texts, generations, selections and roles, as values that do nothing yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxsgl.lang.errors import ProgramError

type Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

type SelectMethod = Literal[
    "token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized"
]


class Expression:
    """Something to append to a state. Expressions and texts are put together by `+`."""

    def __add__(self, other: Expression | str) -> Expression:
        return Together((self, as_expression(other)))

    def __radd__(self, other: Expression | str) -> Expression:
        return Together((as_expression(other), self))


@dataclass(frozen=True, slots=True)
class Text(Expression):
    text: str


@dataclass(frozen=True, slots=True)
class Together(Expression):
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Gen(Expression):
    """Text that the model writes."""

    name: str | None
    sampling: Mapping[str, Any]
    """Fields of `interface.SamplingParams` that the program gave."""
    parse: Callable[[str], Any] | None = None
    """What makes the variable's value of the text."""
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Select(Expression):
    """The likeliest of some texts."""

    name: str | None
    choices: tuple[str, ...]
    method: SelectMethod
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class RoleBegin(Expression):
    role: Role


@dataclass(frozen=True, slots=True)
class RoleEnd(Expression):
    role: Role


def as_expression(value: object) -> Expression:
    """Raises ProgramError for what cannot be appended."""
    if isinstance(value, Expression):
        return value
    if isinstance(value, str):
        return Text(value)
    raise ProgramError(f"a state takes texts and expressions, not {type(value).__name__}")


def turn(role: Role, content: object = None) -> Expression:
    """A whole turn of a conversation."""
    parts = () if content is None else (as_expression(content),)
    return Together((RoleBegin(role), *parts, RoleEnd(role)))


def flatten(expression: Expression) -> list[Expression]:
    """The parts, in order, none of them a Together."""
    flat: list[Expression] = []
    waiting = [expression]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Together):
            waiting += reversed(part.parts)
        else:
            flat.append(part)
    return flat
