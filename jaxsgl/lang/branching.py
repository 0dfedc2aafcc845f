"""`with sgl.branch() as b:`, parallel sub-tasks by name."""

from __future__ import annotations

from contextvars import ContextVar, Token
from types import TracebackType

from jaxsgl.lang.errors import ProgramError, RunCancelled
from jaxsgl.lang.state import ProgramState

CURRENT: ContextVar[ProgramState] = ContextVar("jaxsgl_state")
"""The state whose program, or branch, is being written."""


class branch:
    """A fork of the current state, written in a block that does not wait for it.

    with sgl.branch() as b:
        b += sgl.user("…") + sgl.assistant(sgl.gen("height"))

    Its new variables are read from the state that it came from, as `s["height"]`, or with a `name`
    as `s["name.height"]`. With `inherit=False` it begins without a text. An error in the block ends
    the branch; one in its work comes at the first read of its variables and else at the run's end.
    """

    def __init__(self, name: str | None = None, *, inherit: bool = True) -> None:
        self._prefix = "" if name is None else f"{name}."
        self._inherit = inherit

    def __enter__(self) -> ProgramState:
        """Raises ProgramError outside of programs."""
        parent = CURRENT.get(None)
        if parent is None:
            raise ProgramError("branch: there is no program here; use it within an @sgl.function")
        self._parent = parent
        (self._state,) = parent.spawn(1, self._inherit)
        self._token: Token[ProgramState] = CURRENT.set(self._state)
        return self._state

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        CURRENT.reset(self._token)
        if error is not None:
            self._state.fail(RunCancelled("the block of the branch was left by an error"))
            return
        self._parent.adopt(self._state, self._prefix)
