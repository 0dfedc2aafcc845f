"""Where a scheduler's requests wait while their grammars are compiled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from jaxsgl.actors.grammar_actor import GrammarActor
from jaxsgl.actors.messages import Admit, Checked, CheckGrammar
from jaxsgl.grammar.constraint import Constraint
from jaxsgl.grammar.errors import GrammarError

NOT_COMPILED = "the grammar could not be compiled"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GrammarDone:
    """The wait of a request is over: it has its constraint, is refused, or its time is up."""

    request_id: str
    constraint: Constraint | None = None
    refusal: str | None = None


class GrammarDesk:
    """Each request has a task of its own; `done` is called from it, and must not block."""

    def __init__(self, grammars: GrammarActor | None, done: Callable[[GrammarDone], None]) -> None:
        self._actor = grammars
        self._done = done
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._checks: set[asyncio.Task[None]] = set()

    def constrain(self, message: Admit, deadline_s: float | None) -> None:
        """Compile the grammar of a request. `deadline_s` is on the loop's clock."""
        waiting = asyncio.create_task(self._constrain(message, deadline_s), name="constrain")
        self._waiting[message.request_id] = waiting

    def check(self, message: CheckGrammar, send: Callable[[Checked], None]) -> None:
        checking = asyncio.create_task(self._check(message, send), name="check grammar")
        self._checks.add(checking)
        checking.add_done_callback(self._checks.discard)

    def forget(self, request_ids: list[str]) -> None:
        """These requests are gone: call off what they wait for."""
        for request_id in request_ids if self._waiting else ():
            waiting = self._waiting.pop(request_id, None)
            if waiting is not None:
                waiting.cancel()

    @property
    def _grammars(self) -> GrammarActor:
        if self._actor is None:
            raise GrammarError("grammars are not served here")
        return self._actor

    async def stop(self) -> None:
        """Call off everything."""
        tasks = [*self._waiting.values(), *self._checks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _constrain(self, message: Admit, deadline_s: float | None) -> None:
        sampling, request_id = message.sampling, message.request_id
        told = () if message.told is None else message.told.token_ids
        done = GrammarDone(request_id)
        try:
            async with asyncio.timeout_at(deadline_s):
                constraint = await _or_refusal(lambda: self._grammars.constrain(sampling, told))
            if isinstance(constraint, Constraint):
                done = GrammarDone(request_id, constraint)
            else:
                done = GrammarDone(request_id, refusal=constraint)
        except TimeoutError:
            pass
        self._done(done)

    async def _check(self, message: CheckGrammar, send: Callable[[Checked], None]) -> None:
        grammar, prefix = message.grammar, message.prefix
        report = await _or_refusal(lambda: self._grammars.check(grammar, prefix))
        if isinstance(report, str):
            send(Checked(message.ask_id, error=report))
        else:
            send(Checked(message.ask_id, report))


async def _or_refusal[T](compile_: Callable[[], Coroutine[Any, Any, T]]) -> T | str:
    """Its result, or why there is none. A defect is told in the log alone."""
    try:
        return await compile_()
    except GrammarError as error:
        return str(error)
    except Exception:
        log.exception(NOT_COMPILED)
        return NOT_COMPILED
