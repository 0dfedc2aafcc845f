"""One state at work: its operations, one after the other, in the back end's loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from jaxsgl.lang.backend import Answer, Context, Release
from jaxsgl.lang.errors import InvalidAnswer, ProgramError, RunCancelled
from jaxsgl.lang.feed import Feed
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
    Operation,
    Reach,
    SetVariable,
)
from jaxsgl.lang.variable import Variable

type Start = Callable[[Coroutine[Any, Any, None]], Future[None]]
"""Starts a coroutine in the loop, from any thread. Raises ShutDown."""
type Event = AddText | BeginTurn | EndTurn | Answer
"""What a state's text is made of."""


class StateActor:
    """Works only while it has something to do: an idle state has no task, and no state a thread.

    The first error ends it. Variables that were still to come fail with that error, and so does
    everything that is asked of it later.
    """

    def __init__(self, start: Start, open_context: Callable[[], Context]) -> None:
        self.feed = Feed()
        """Its text as it grows."""
        self.finished: Future[None] = Future()
        """Done when it has ended, also by an error."""
        self.error: BaseException | None = None
        self.context: Context | None = None
        """None until `begin`. To be touched by others only while nothing is going on."""
        self._start = start
        self._open_context = open_context
        self._lock = threading.Lock()
        self._waiting: deque[Operation] = deque()
        self._current: Operation | None = None
        self._working: Future[None] | None = None
        self._is_active = True
        """Whether it takes up what is put; a fork that has not begun will."""
        self._is_closed = False
        self._events: list[Event] = []
        self._num_inherited_events = 0
        self._scopes: dict[Variable, int] = {}

    # For every thread.

    def put(self, operation: Operation) -> None:
        """Do this after everything else. After an error it fails like all that still waited, and
        says so to whoever reads what it would have brought. Raises ProgramError if the state has
        been joined."""
        with self._lock:
            error = self.error
            if error is None and self._is_closed:
                error = ProgramError("this state has been joined: nothing can be added to it")
            if error is None:
                self._waiting.append(operation)
                if self._is_active:
                    return
                self._is_active = True
        if error is None:
            self._work_on()
            return
        operation.fail(error)
        if error is not self.error:
            raise error

    def close(self) -> None:
        """Nothing more will be put. Idempotent."""
        with self._lock:
            self._is_closed = True
            is_over = not self._is_active
        if is_over:
            self._end()

    def fail(self, error: BaseException) -> None:
        """End with an error, and call off what is going on. Nothing happens if it has ended."""
        with self._lock:
            if self.error is not None or self.finished.done():
                return
            self.error = error
            lost = [*self._waiting, *([self._current] if self._current else [])]
            self._waiting.clear()
            working = self._working
        for operation in lost:
            operation.fail(error)
        for variable in list(self._scopes):
            variable.fail(error)
        self._end()
        if working is not None:
            working.cancel()

    # In the loop.

    def begin(self, parent: StateActor | None, inherit: bool = True) -> None:
        """With the text of `parent`, or none."""
        if parent is None or parent.context is None or not inherit:
            self.context = self._open_context()
        else:
            self.context = parent.context.copy()
            self._events = parent._events.copy()
            self._num_inherited_events = len(self._events)
        if self.error is None:
            self._work_on()

    def _work_on(self) -> None:
        try:
            working = self._start(self._work())
        except Exception as error:  # the loop has ended
            self.fail(error)
            return
        with self._lock:
            self._working = working
            is_over = self.error is not None
        if is_over:  # it failed in between
            working.cancel()

    async def _work(self) -> None:
        while (operation := self._next()) is not None:
            try:
                await self._perform(operation)
            except asyncio.CancelledError:
                self.fail(RunCancelled("the engine has ended, or the run was cancelled"))
                raise
            except Exception as error:
                operation.fail(error)
                self.fail(error)
                return

    def _next(self) -> Operation | None:
        with self._lock:
            self._current = None
            if self.error is None and self._waiting:
                self._current = self._waiting.popleft()
                return self._current
            self._is_active = False
            is_over = self._is_closed
        if is_over:
            self._end()
        return None

    def _end(self) -> None:
        with self._lock:
            if self.finished.done():
                return
            self.finished.set_result(None)
        self.feed.end()

    async def _perform(self, operation: Operation) -> None:
        context = self.context
        assert context is not None
        match operation:
            case AddText() | BeginTurn() | EndTurn() as event:
                self._apply(context, event)
            case Generate():
                await self._generate(context, operation)
            case Choose(select, variable):
                choice = await context.select(select.choices, select.method, select.timeout_s)
                self._apply(context, AddText(choice.text))
                variable.feed.add(choice.text)
                variable.set(choice.text, choice.meta)
            case SetVariable(variable, value):
                variable.set(value)
            case BeginScope(variable):
                self._scopes[variable] = len(context.text())
            case EndScope(variable):
                variable.set(context.text()[self._scopes.pop(variable) :])
            case Fork(children, inherit):
                if inherit and len(children) > 1:
                    release = await context.commit()
                    if release is not None:
                        _when_finished(children, release)
                for child in children:
                    child.begin(self, inherit)
            case Join():
                await self._join(context, operation)
            case Reach(reached):
                reached.set_result(None)

    def _apply(self, context: Context, event: Event) -> None:
        match event:
            case AddText(text):
                context.add_text(text)
                self.feed.add(text)
            case BeginTurn(role):
                self.feed.add(context.begin_turn(role))
            case EndTurn():
                self.feed.add(context.end_turn())
            case Answer():
                context.add_answer(event)
        self._events.append(event)

    async def _generate(self, context: Context, operation: Generate) -> None:
        gen, variable = operation.gen, operation.variable

        def on_text(text: str) -> None:
            self.feed.add(text)
            variable.feed.add(text)

        try:
            answer = await context.generate(operation.sampling, gen.timeout_s, on_text)
        except Exception as error:
            error.add_note(f"while generating {variable.name!r}")
            raise
        self._apply(context, answer)
        value: Any = answer.text
        if gen.parse is not None:
            try:
                value = gen.parse(answer.text)
            except ValueError as error:
                reason = answer.meta.get("finish_reason")
                raise InvalidAnswer(
                    f"{variable.name!r} cannot be read: {error}; the answer, which ended with "
                    f"{reason}, is {answer.text[:200]!r}"
                ) from error
        variable.set(value, answer.meta)

    async def _join(self, context: Context, operation: Join) -> None:
        for child in operation.children:
            await asyncio.shield(asyncio.wrap_future(child.finished))
            if child.error is not None:
                raise child.error
        for variable, parts in operation.gathered:
            variable.set([part.get(0) for part in parts], {"parts": [part.meta for part in parts]})
        if operation.mode == "concate_and_append":
            for child in operation.children:
                for event in child._events[child._num_inherited_events :]:
                    self._apply(context, event)
                    if isinstance(event, Answer):
                        self.feed.add(event.text)


def _when_finished(actors: Sequence[StateActor], release: Release) -> None:
    """Call `release` when the last of the actors has ended, however it ends and wherever."""
    lock = threading.Lock()
    num_left = len(actors)

    def on_end(ended: Future[None]) -> None:
        nonlocal num_left
        with lock:
            num_left -= 1
            is_last = num_left == 0
        if is_last:
            release()

    for actor in actors:
        actor.finished.add_done_callback(on_end)
