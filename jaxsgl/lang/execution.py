"""One run of a program: its states, its time, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import Any

import msgspec

from jaxsgl.interface import InvalidRequest, SamplingParams, check_sampling
from jaxsgl.lang.backend import Backend
from jaxsgl.lang.errors import RunTimeout
from jaxsgl.lang.state_actor import StateActor

DEFAULT_MAX_TOKENS = 128
"""Of a generation, where neither the program nor the run says otherwise."""


class Execution:
    """Owns the actors of a run. Its methods may be called from any thread."""

    def __init__(
        self, backend: Backend, sampling: Mapping[str, Any], timeout_s: float | None
    ) -> None:
        """`sampling` holds fields of SamplingParams for generations that do not say."""
        self._backend = backend
        self._defaults = {"max_tokens": DEFAULT_MAX_TOKENS, **sampling}
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._actors: list[StateActor] = []
        self._error: BaseException | None = None
        self._timer: Future[None] | None = None
        self._reported: set[int] = set()
        """ids of errors of actors that the program has seen."""
        self.main = self.new_actor()

    def begin(self) -> None:
        """Start the clock. Raises ShutDown if the back end has ended."""
        self.main.begin(None)
        if self._timeout_s is not None:
            self._timer = self._start(self._expire(self._timeout_s))

    def new_actor(self) -> StateActor:
        """Raises the error with which the run has been cancelled."""
        actor = StateActor(self._start, self._backend.open)
        with self._lock:
            if self._error is not None:
                raise self._error
            self._actors.append(actor)
        return actor

    def sampling(self, given: Mapping[str, Any]) -> SamplingParams:
        """Raises InvalidRequest."""
        fields = {**self._defaults, **given}
        if fields["max_tokens"] < fields.get("min_tokens", 0) and "max_tokens" not in given:
            fields["max_tokens"] = fields["min_tokens"]
        try:
            sampling = msgspec.convert(fields, SamplingParams)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"gen: {error}") from None
        check_sampling(sampling)
        return sampling

    def call[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something short in the loop."""
        return self._backend.loop.run(coroutine)

    def saw(self, error: BaseException) -> None:
        """The program was told of this error; what it makes of it is its own affair."""
        self._reported.add(id(error))

    def cancel(self, error: BaseException) -> None:
        """End everything at once with this error. Idempotent."""
        with self._lock:
            if self._error is None:
                self._error = error
            actors, error = self._actors.copy(), self._error
        for actor in actors:
            actor.fail(error)
        self._stop_timer()

    def finish(self) -> BaseException | None:
        """Wait for everything that was asked for; the body has ended. Returns the first error that
        the program has not seen, and that of the main state in any case."""
        with self._lock:
            actors = self._actors.copy()
        for actor in actors:
            actor.close()
        for actor in actors:
            actor.finished.result()
        self._stop_timer()
        error = self.main.error or self._error
        for actor in actors:
            if error is None and actor.error is not None and id(actor.error) not in self._reported:
                error = actor.error
        with self._lock:
            self._actors.clear()
        return error

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        return self._backend.loop.submit(coroutine)

    async def _expire(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self.cancel(RunTimeout(f"the run has taken more than its {after_s:g} s"))

    def _stop_timer(self) -> None:
        timer = self._timer
        if timer is not None:
            timer.cancel()
