"""What is asked of a state's actor, in the order of the program."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jaxsgl.interface import SamplingParams
from jaxsgl.lang.expressions import Gen, Role, Select
from jaxsgl.lang.variable import Variable

if TYPE_CHECKING:
    from jaxsgl.lang.state_actor import StateActor

type JoinMode = Literal["gather_variable", "concate_and_append"]


class Operation:
    """Done once, or failed."""

    __slots__ = ()

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits for what it would have brought."""


@dataclass(frozen=True, slots=True)
class AddText(Operation):
    text: str


@dataclass(frozen=True, slots=True)
class BeginTurn(Operation):
    role: Role


@dataclass(frozen=True, slots=True)
class EndTurn(Operation):
    pass


@dataclass(frozen=True, slots=True)
class Generate(Operation):
    gen: Gen
    sampling: SamplingParams
    variable: Variable

    def fail(self, error: BaseException) -> None:
        self.variable.fail(error)


@dataclass(frozen=True, slots=True)
class Choose(Operation):
    select: Select
    variable: Variable

    def fail(self, error: BaseException) -> None:
        self.variable.fail(error)


@dataclass(frozen=True, slots=True)
class BeginScope(Operation):
    """The text from here on is `variable`, up to its EndScope."""

    variable: Variable

    def fail(self, error: BaseException) -> None:
        self.variable.fail(error)


@dataclass(frozen=True, slots=True)
class EndScope(Operation):
    variable: Variable


@dataclass(frozen=True, slots=True)
class Fork(Operation):
    children: Sequence[StateActor]
    inherit: bool = True
    """Whether they begin with this state's text; else with none."""

    def fail(self, error: BaseException) -> None:
        for child in self.children:
            child.fail(error)


@dataclass(frozen=True, slots=True)
class Join(Operation):
    """Wait for forks to end."""

    children: Sequence[StateActor]
    mode: JoinMode
    gathered: Sequence[tuple[Variable, Sequence[Variable]]]
    """Each variable to set, and those whose values become its list."""

    def fail(self, error: BaseException) -> None:
        for variable, _ in self.gathered:
            variable.fail(error)


@dataclass(frozen=True, slots=True)
class Reach(Operation):
    """Tell when all before it is done."""

    reached: Future[None]

    def fail(self, error: BaseException) -> None:
        if not self.reached.done():
            self.reached.set_exception(error)


@dataclass(frozen=True, slots=True)
class SetVariable(Operation):
    variable: Variable
    value: Any

    def fail(self, error: BaseException) -> None:
        self.variable.fail(error)
