"""Several states at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

from jaxsgl.lang.errors import ProgramError
from jaxsgl.lang.expressions import Expression
from jaxsgl.lang.operations import JoinMode

if TYPE_CHECKING:
    from jaxsgl.lang.state import ProgramState

type Appended = Expression | str
type PerFork = Appended | Sequence[Appended] | Callable[[int], Appended]


class StateGroup:
    """The states of a fork."""

    def __init__(self, parent: ProgramState, states: list[ProgramState]) -> None:
        self._parent = parent
        self._states = states

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, index: int) -> ProgramState:
        return self._states[index]

    def __setitem__(self, index: int, state: ProgramState) -> None:
        """For `forks[i] += …`, which puts back what it took."""
        if self._states[index] is not state:
            raise ProgramError("the states of a fork cannot be replaced")

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self._states)

    def __iadd__(self, other: PerFork) -> Self:
        """Append the same to each; or one item of a list to each; or, of a function of the index,
        what it gives."""
        if callable(other):
            parts = [other(index) for index in range(len(self))]
        elif isinstance(other, str | Expression):
            parts = [other] * len(self)
        else:
            parts = list(other)
        if len(parts) != len(self):
            raise ProgramError(f"{len(parts)} expressions for {len(self)} forks")
        for state, part in zip(self._states, parts, strict=True):
            state += part
        return self

    def join(self, mode: JoinMode = "gather_variable") -> None:
        """Bring the forks together in the state that they came from; they get no more text.

        "gather_variable": each variable that they set becomes a list there, in their order.
        "concate_and_append": their new text is appended, in their order. Does not wait. An error of
        a fork becomes one of the parent. Raises ProgramError if not every fork sets the same
        variables.
        """
        self._parent.join(self._states, mode)
