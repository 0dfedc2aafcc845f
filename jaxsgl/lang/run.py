"""What `program.run` returns."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import Future
from typing import Any

from jaxsgl.lang.errors import RunCancelled, UnknownVariable
from jaxsgl.lang.execution import Execution
from jaxsgl.lang.names import Names
from jaxsgl.lang.variable import Variable


class Run:
    """A run of a program and, once it has ended, its final state.

    A run that streams is cancelled when nobody holds it any more: what it had in the engine is
    given back.
    """

    def __init__(self, execution: Execution, names: Names) -> None:
        self._execution = execution
        self._names = names
        self._ended: Future[Any] = Future()
        """With what the body returned, or the error of the run."""
        error = RunCancelled("the run was dropped before it ended")
        self._dropped = weakref.finalize(self, execution.cancel, error)
        self._dropped.atexit = False

    @property
    def ended(self) -> Future[Any]:
        return self._ended

    def __getitem__(self, name: str) -> Any:
        """Wait for a variable. Raises the error that came in its place, or UnknownVariable once the
        program has ended without setting it."""
        return self.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._names.all()

    def get(self, name: str, timeout_s: float | None = None) -> Any:
        """`run[name]`. Raises TimeoutError when `timeout_s` is over; the run goes on."""
        return self._variable(name, timeout_s).get(timeout_s)

    async def async_get(self, name: str) -> Any:
        """`run[name]` for a reader in an event loop."""
        variable = await asyncio.wrap_future(self._names.expect(name))
        return await variable.wait()

    def get_meta_info(self, name: str, timeout_s: float | None = None) -> dict[str, Any]:
        """What the back end said about a variable. Raises as `get`."""
        self.get(name, timeout_s)
        return self._variable(name).meta

    def variables(self) -> dict[str, Any]:
        """The values of all variables, once the run has ended. Raises its error."""
        self.wait()
        return {name: variable.get() for name, variable in self._names.all().items()}

    @property
    def ret_value(self) -> Any:
        """What the program returned, once it has. Raises the run's error."""
        return self.wait()

    def wait(self, timeout_s: float | None = None) -> Any:
        """Wait for the end of the run; what the program returned. Raises the run's error, or
        TimeoutError when `timeout_s` is over; the run goes on."""
        return self._ended.result(timeout_s)

    def error(self) -> BaseException | None:
        """What the run ended with, if it was an error; waits for the end."""
        return self._ended.exception()

    def cancel(self) -> None:
        """End the run at once. Readers get RunCancelled. Idempotent."""
        self._execution.cancel(RunCancelled("the run was cancelled"))

    def text(self) -> str:
        """All that was written; waits for the end. After an error, what there was before it."""
        self._ended.exception()
        context = self._execution.main.context
        return "" if context is None else context.text()

    def messages(self) -> list[dict[str, str]]:
        """The turns that are over; waits for the end."""
        self._ended.exception()
        context = self._execution.main.context
        return [] if context is None else context.messages()

    def token_ids(self) -> list[int]:
        """The tokens of `text()`; waits for the end. Raises ProgramError on back ends that do not
        tell."""
        self._ended.exception()
        context = self._execution.main.context
        return [] if context is None else self._execution.call(context.token_ids())

    def text_iter(self, name: str | None = None) -> Generator[str]:
        """The text of a variable, or all text, piece by piece as it is written. Raises the error
        with which it ends."""
        if name is None:
            yield from self._execution.main.feed.follow()
            self.wait()
        else:
            variable = self._variable(name)
            yield from variable.feed.follow()
            variable.get()

    async def text_async_iter(self, name: str | None = None) -> AsyncGenerator[str]:
        """`text_iter` for a reader in an event loop."""
        if name is None:
            async for piece in self._execution.main.feed.async_follow():
                yield piece
            await asyncio.shield(asyncio.wrap_future(self._ended))
        else:
            variable = await asyncio.wrap_future(self._names.expect(name))
            async for piece in variable.feed.async_follow():
                yield piece
            await variable.wait()

    def __aiter__(self) -> AsyncGenerator[str]:
        """All text, piece by piece."""
        return self.text_async_iter()

    def __iter__(self) -> Generator[str]:
        """All text, piece by piece."""
        return self.text_iter()

    def _variable(self, name: str, timeout_s: float | None = None) -> Variable:
        try:
            return self._names.expect(name).result(timeout_s)
        except UnknownVariable:
            error = self._ended.exception()
            if error is not None:  # the program ended before it came to that
                raise error from None
            raise
