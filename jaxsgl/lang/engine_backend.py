"""Programs on an engine in this process."""

from __future__ import annotations

from typing import cast

from jaxsgl.lang.engine_context import EngineContext, ProgramTokenizer
from jaxsgl.lang.errors import ProgramError
from jaxsgl.lang.turn_forms import TurnForms
from jaxsgl.offline.background import BackgroundLoop
from jaxsgl.offline.offline_engine import OfflineEngine


class EngineBackend:
    """A `backend.Backend` whose programs run in the engine's own event loop: no token crosses a
    thread before somebody reads it."""

    def __init__(self, engine: OfflineEngine) -> None:
        """Raises ProgramError for an engine without a tokenizer."""
        if not hasattr(engine.tokenizer, "encode_continuation"):
            raise ProgramError("programs need a tokenizer; the engine was started without one")
        self._engine = engine
        self._tokenizer = cast(ProgramTokenizer, engine.tokenizer)
        self._forms = TurnForms(self._tokenizer)

    @property
    def loop(self) -> BackgroundLoop:
        return self._engine.loop

    def open(self) -> EngineContext:
        engine = self._engine
        return EngineContext(
            engine.client, self._tokenizer, self._forms, commits=engine.shares_prefixes
        )
