"""The state of a program: what its body calls `s`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Self

from jaxsgl.lang.errors import ProgramError, UnknownVariable
from jaxsgl.lang.execution import Execution
from jaxsgl.lang.expressions import (
    Expression,
    Gen,
    Role,
    RoleBegin,
    RoleEnd,
    Select,
    Text,
    as_expression,
    flatten,
    turn,
)
from jaxsgl.lang.names import Names
from jaxsgl.lang.operations import (
    AddText,
    BeginScope,
    BeginTurn,
    Choose,
    EndScope,
    EndTurn,
    Fork,
    Generate,
    Join,
    JoinMode,
    Reach,
    SetVariable,
)
from jaxsgl.lang.state_actor import StateActor
from jaxsgl.lang.state_group import StateGroup
from jaxsgl.lang.variable import Variable

UNNAMED = "_"
"""What a generation without a name is called in messages; no variable."""


class ProgramState:
    """A growing text with named parts. Adding to it does not wait; reading a variable does.

    A state belongs to the thread that runs the program's body.
    """

    def __init__(
        self,
        execution: Execution,
        actor: StateActor,
        names: Names | None = None,
        role: Role | None = None,
    ) -> None:
        self._execution = execution
        self._actor = actor
        self._names = names or Names()
        self._role: Role | None = role

    # Growing.

    def __iadd__(self, other: Expression | str) -> Self:
        """Append a text or an expression. Raises ProgramError for what makes no sense here, and
        InvalidRequest for a parameter out of bounds; after an error of the state nothing is added,
        and reading raises that error."""
        for part in flatten(as_expression(other)):
            self._append(part)
        return self

    def system(self, content: Expression | str | None = None) -> Any:
        """A turn of the system; without content, a context manager for one."""
        return self._turn("system", content)

    def user(self, content: Expression | str | None = None) -> Any:
        """A turn of the user; without content, a context manager for one."""
        return self._turn("user", content)

    def assistant(self, content: Expression | str | None = None) -> Any:
        """A turn of the assistant; without content, a context manager for one."""
        return self._turn("assistant", content)

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """What is added in the block is variable `name`."""
        variable = Variable(name)
        self._actor.put(BeginScope(variable))
        self._names.bind(name, variable)
        yield
        self._actor.put(EndScope(variable))

    def __setitem__(self, name: str, value: Any) -> None:
        variable = Variable(name)
        self._names.bind(name, variable)
        self._actor.put(SetVariable(variable, value))

    # Reading.

    def __getitem__(self, name: str) -> Any:
        """Wait for a variable. Raises the error that came in its place, or UnknownVariable if
        nothing so far sets it."""
        return self.get(name)

    def __contains__(self, name: str) -> bool:
        """Whether the program sets such a variable, perhaps later."""
        return name in self._names.all()

    def get(self, name: str, timeout_s: float | None = None) -> Any:
        """`s[name]`. Raises TimeoutError when `timeout_s` is over; the run goes on."""
        try:
            return self._names.get(name).get(timeout_s)
        except UnknownVariable:
            raise
        except Exception as error:
            self._execution.saw(error)
            raise

    def get_meta_info(self, name: str, timeout_s: float | None = None) -> dict[str, Any]:
        """What the back end said about a variable: tokens, log-probabilities, why it ended. Raises
        as `get`."""
        self.get(name, timeout_s)
        return self._names.get(name).meta

    def text(self) -> str:
        """All that was written so far, with what the chat template adds; waits for it."""
        self._wait()
        assert self._actor.context is not None
        return self._actor.context.text()

    def messages(self) -> list[dict[str, str]]:
        """The turns that are over; waits for them."""
        self._wait()
        assert self._actor.context is not None
        return self._actor.context.messages()

    def token_ids(self) -> list[int]:
        """The tokens of `text()`, as the engine has them. Raises ProgramError on back ends that do
        not tell."""
        self._wait()
        context = self._actor.context
        assert context is not None
        return self._execution.call(context.token_ids())

    def error(self) -> BaseException | None:
        """What ended this state, if something has."""
        return self._actor.error

    def text_iter(self, name: str | None = None) -> Generator[str]:
        """The text of a variable, or of the state, piece by piece; that of the state ends with the
        run."""
        if name is None:
            yield from self._actor.feed.follow()
            return
        variable = self._names.get(name)
        yield from variable.feed.follow()
        self.get(name)

    async def text_async_iter(self, name: str | None = None) -> AsyncGenerator[str]:
        """`text_iter` for a reader in an event loop."""
        feed = self._actor.feed if name is None else self._names.get(name).feed
        async for piece in feed.async_follow():
            yield piece
        if name is not None:
            self.get(name)

    # Going several ways.

    def fork(self, size: int = 1) -> StateGroup:
        """`size` states that begin with this one's text and variables. Does not wait."""
        if size < 1:
            raise ProgramError("fork: size must be at least 1")
        return StateGroup(self, self.spawn(size))

    @contextmanager
    def copy(self) -> Iterator[ProgramState]:
        """A state that goes its own way; at the end of the block its new variables become this
        state's."""
        (twin,) = self.spawn(1)
        yield twin
        self.adopt(twin)

    def spawn(self, size: int, inherit: bool = True) -> list[ProgramState]:
        """What `fork` and `branch` are made of."""
        actors = [self._execution.new_actor() for _ in range(size)]
        try:
            self._actor.put(Fork(actors, inherit))
        except BaseException as error:
            for actor in actors:
                actor.fail(error)
            raise
        names = self._names.all()
        role: Role | None = self._role if inherit else None
        return [ProgramState(self._execution, actor, Names(names), role) for actor in actors]

    def adopt(self, other: ProgramState, prefix: str = "") -> None:
        """The new variables of `other`, which gets no more text, become this state's.

        Raises ProgramError if one of that name is there already.
        """
        other._actor.close()
        new = {prefix + name: variable for name, variable in other._names.new().items()}
        clashes = new.keys() & self._names.all().keys()
        if clashes:
            name = min(clashes)
            error = ProgramError(
                f"there is a variable {name!r} already; give the branch a name, as in "
                f"sgl.branch(name='b'), and read it as s['b.{name}']"
            )
            other.fail(error)
            raise error
        for name, variable in new.items():
            self._names.bind(name, variable)

    def join(self, others: Sequence[ProgramState], mode: JoinMode) -> None:
        """See StateGroup.join."""
        if mode not in ("gather_variable", "concate_and_append"):
            raise ProgramError(f"join: {mode!r} is not gather_variable or concate_and_append")
        new = [other._names.new() for other in others]
        gathered: list[tuple[str, Variable, list[Variable]]] = []
        if mode == "gather_variable":
            for name in dict.fromkeys(name for each in new for name in each):
                if any(name not in each for each in new):
                    raise ProgramError(f"join: not every fork sets {name!r}")
                gathered.append((name, Variable(name), [each[name] for each in new]))
        for other in others:
            other._actor.close()
        pairs = [(variable, parts) for _, variable, parts in gathered]
        self._actor.put(Join([other._actor for other in others], mode, pairs))
        for name, variable, _ in gathered:
            self._names.bind(name, variable)

    def fail(self, error: BaseException) -> None:
        """End this state at once."""
        self._actor.fail(error)
        self._execution.saw(error)

    # How it is done.

    def _append(self, part: Expression) -> None:
        match part:
            case Text(text):
                self._actor.put(AddText(text))
            case Gen(name, given):
                variable = Variable(name or UNNAMED)
                self._actor.put(Generate(part, self._execution.sampling(given), variable))
                self._bind(name, variable)
            case Select(name):
                variable = Variable(name or UNNAMED)
                self._actor.put(Choose(part, variable))
                self._bind(name, variable)
            case RoleBegin(role):
                if self._role is not None:
                    raise ProgramError(f"a {role} turn cannot begin within a {self._role} turn")
                self._actor.put(BeginTurn(role))
                self._role = role
            case RoleEnd(role):
                if self._role != role:
                    raise ProgramError(f"there is no {role} turn to end here")
                self._actor.put(EndTurn())
                self._role = None
            case _:
                raise ProgramError(f"a state does not take a {type(part).__name__}")

    def _bind(self, name: str | None, variable: Variable) -> None:
        if name is not None:
            self._names.bind(name, variable)

    def _turn(self, role: Role, content: Expression | str | None) -> Any:
        if content is None:
            return self._turn_block(role)
        self.__iadd__(turn(role, content))
        return None

    @contextmanager
    def _turn_block(self, role: Role) -> Iterator[None]:
        self._append(RoleBegin(role))
        yield
        self._append(RoleEnd(role))

    def _wait(self) -> None:
        reached: Future[None] = Future()
        try:
            self._actor.put(Reach(reached))
            reached.result()
        except Exception as error:
            self._execution.saw(error)
            raise
