"""`@sgl.function`: a Python function as a program of prompts."""

from __future__ import annotations

import asyncio
import inspect
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

from jaxsgl.interface import SamplingParams
from jaxsgl.lang.backend import Backend
from jaxsgl.lang.batching import run_all
from jaxsgl.lang.branching import CURRENT
from jaxsgl.lang.default_backend import AnyBackend, as_backend, default_backend
from jaxsgl.lang.errors import ProgramError, RunCancelled
from jaxsgl.lang.execution import Execution
from jaxsgl.lang.free_names import misses_state, uses_free_state
from jaxsgl.lang.names import Names
from jaxsgl.lang.run import Run
from jaxsgl.lang.state import ProgramState

_SAMPLING = frozenset(SamplingParams.__struct_fields__) - {
    "grammar",
    "prompt_logprobs",
    "prompt_logprobs_from",
}
"""What a run may say for all its generations."""


class Program:
    """A function of a state `s` and arguments, to be run. Get one from `function`."""

    def __init__(self, body: Callable[..., Any], bound: Mapping[str, Any] | None = None) -> None:
        self.__name__ = getattr(body, "__name__", "program")
        self.__doc__ = body.__doc__
        self._body = body
        self._signature = inspect.signature(body)
        self._bound = dict(bound or {})

    def bind(self, **arguments: Any) -> Program:
        """The same program with some arguments given. Raises TypeError for those it has not."""
        unknown = arguments.keys() - self._signature.parameters.keys()
        takes_any = any(
            parameter.kind is inspect.Parameter.VAR_KEYWORD
            for parameter in self._signature.parameters.values()
        )
        if unknown and not takes_any:
            raise TypeError(f"{self.__name__}() has no argument {min(unknown)!r}")
        return Program(self._body, {**self._bound, **arguments})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """With a state, append this program to it and return what it returns; else `run`."""
        if args and isinstance(args[0], ProgramState):
            return self._body(*args, **{**self._bound, **kwargs})
        return self.run(*args, **kwargs)

    def run(
        self,
        *args: Any,
        stream: bool = False,
        backend: AnyBackend | None = None,
        timeout_s: float | None = None,
        errors: str = "raise",
        **kwargs: Any,
    ) -> Run:
        """Run it, with its arguments and with sampling parameters for generations that leave them
        out, such as `temperature` and `max_tokens`.

        With `stream` it returns at once, and the body runs in a thread. Without, it returns when
        everything is done, and raises the first error that the body has not seen; with
        `errors="store"` it returns then too, and the run tells the error. `timeout_s` bounds it all
        and ends in RunTimeout. An interrupt ends everything that the run has begun.
        """
        if errors not in ("raise", "store"):
            raise ProgramError(f"errors={errors!r} is not raise or store")
        run, perform = self._prepare(args, kwargs, _backend(backend), timeout_s)
        if stream:
            context = copy_context()
            # Not a method of the run, which may be dropped while this goes on.
            name = f"program {self.__name__}"
            threading.Thread(target=lambda: context.run(perform), name=name, daemon=True).start()
            return run
        perform()
        error = run.error()
        if error is not None and errors == "raise":
            raise error
        return run

    async def async_run(
        self,
        *args: Any,
        backend: AnyBackend | None = None,
        timeout_s: float | None = None,
        **kwargs: Any,
    ) -> Run:
        """`run` for a caller with an event loop. Cancelled, it ends everything that the run has
        begun."""
        chosen = await asyncio.to_thread(_backend, backend)
        run, perform = self._prepare(args, kwargs, chosen, timeout_s)
        try:
            await asyncio.to_thread(perform)
        except asyncio.CancelledError:
            run.cancel()
            raise
        run.wait()
        return run

    def run_batch(
        self,
        batch: Sequence[Mapping[str, Any] | Sequence[Any]],
        *,
        backend: AnyBackend | None = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        timeout_s: float | None = None,
        return_exceptions: bool = False,
        **sampling: Any,
    ) -> list[Any]:
        """One run per row, a dict of arguments or a sequence of them; the runs in the rows' order.

        At most `num_threads` bodies run at a time. `timeout_s` bounds each run. The first error is
        raised once the other runs are cancelled; with `return_exceptions` it takes its run's
        place in the list instead, and the others go on.
        """
        chosen = _backend(backend)
        prepared: list[tuple[Run, Callable[[], None]]] = []
        for row in batch:
            args, kwargs = ((), row) if isinstance(row, Mapping) else (row, {})
            prepared.append(self._prepare(args, {**sampling, **kwargs}, chosen, timeout_s))
        return run_all(prepared, num_threads, progress_bar, return_exceptions)

    def _prepare(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        backend: Backend,
        timeout_s: float | None,
    ) -> tuple[Run, Callable[[], None]]:
        """A run, and what performs it; neither refers to the run, which may be dropped."""
        arguments, sampling = self._split(kwargs)
        self._signature.bind(None, *args, **arguments)
        execution = Execution(backend, sampling, timeout_s)
        names = Names()
        state = ProgramState(execution, execution.main, names)
        run = Run(execution, names)
        body, ended = self._body, run.ended

        def perform() -> None:
            token = CURRENT.set(state)
            try:
                execution.begin()
                value = body(state, *args, **arguments)
            except BaseException as error:
                _explain(error)
                _end_by(error, execution, names, ended)
                if not isinstance(error, Exception):
                    raise
            else:
                _end(value, execution, names, ended)
            finally:
                CURRENT.reset(token)

        return run, perform

    def _split(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the body, and sampling parameters; the body comes first."""
        arguments, sampling = dict(self._bound), dict[str, Any]()
        for name, value in kwargs.items():
            field = "max_tokens" if name == "max_new_tokens" else name
            if name not in self._signature.parameters and field in _SAMPLING:
                sampling[field] = (value,) if field == "stop" and isinstance(value, str) else value
            else:
                arguments[name] = value
        return arguments, sampling


def function(body: Callable[..., Any]) -> Program:
    """Make a program of a function whose first parameter is named `s`.

    Warns if it reads a name `state` that does not exist: within a program a variable is read as
    `s[...]`. Raises ProgramError for another first parameter, or a coroutine function.
    """
    parameters = list(inspect.signature(body).parameters)
    name = getattr(body, "__name__", "program")
    if not parameters or parameters[0] != "s":
        raise ProgramError(f"{name}: the first parameter of a program must be named s")
    if inspect.iscoroutinefunction(body) or inspect.isgeneratorfunction(body):
        raise ProgramError(f"{name}: a program is a plain function; it may be awaited by async_run")
    if uses_free_state(body, Run):
        warnings.warn(
            f"{name}: `state` is not known within a program; to read a variable write s[...]",
            stacklevel=2,
        )
    return Program(body)


def _backend(given: AnyBackend | None) -> Backend:
    return default_backend() if given is None else as_backend(given)


def _explain(error: BaseException) -> None:
    if misses_state(error):
        error.add_note("within a program, read a variable as s[...], not state[...]")


def _end(value: Any, execution: Execution, names: Names, ended: Future[Any]) -> None:
    """The body has returned."""
    error: BaseException | None
    try:
        error = execution.finish()
    except BaseException as interrupt:
        _end_by(interrupt, execution, names, ended)
        raise
    if error is None:
        ended.set_result(value)
    else:
        ended.set_exception(error)
    names.close()


def _end_by(error: BaseException, execution: Execution, names: Names, ended: Future[Any]) -> None:
    """The body has raised."""
    execution.cancel(RunCancelled("the program ended by an error"))
    ended.set_exception(error)
    names.close()
