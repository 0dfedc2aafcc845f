"""What programs need of a back end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from jaxsgl.interface import SamplingParams
from jaxsgl.lang.expressions import Role, SelectMethod
from jaxsgl.offline.background import BackgroundLoop


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote."""

    text: str
    meta: dict[str, Any] = field(default_factory=dict[str, Any])
    """As the `meta_info` of the offline engine, as far as the back end knows."""
    token_ids: tuple[int, ...] = ()
    """The tokens of the text's beginning, as they were drawn; empty if the back end does not
    say."""
    rest: str = ""
    """What of the text is not in `token_ids`: a stop string may cut a token in two."""


type Release = Callable[[], None]
"""Ends what was begun; any thread may call it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which text was selected, and why."""

    text: str
    meta: dict[str, Any]


class Context(Protocol):
    """The text and the conversation of one state, as its back end keeps it.

    Its methods run one at a time, in the back end's loop.
    """

    def copy(self) -> Self:
        """The same again, going its own way."""
        ...

    def add_text(self, text: str) -> None: ...

    def add_answer(self, answer: Answer) -> None: ...

    def begin_turn(self, role: Role) -> str:
        """Returns what is written before the turn's content."""
        ...

    def end_turn(self) -> str:
        """Returns what is written after the turn's content."""
        ...

    async def generate(
        self, sampling: SamplingParams, timeout_s: float | None, on_text: Callable[[str], None]
    ) -> Answer:
        """What follows the text; it is not added. `on_text` gets it piece by piece.

        Raises EngineError or ProgramError. Cancelled, it leaves nothing running.
        """
        ...

    async def select(
        self, choices: tuple[str, ...], method: SelectMethod, timeout_s: float | None
    ) -> Choice:
        """Which of `choices` follows the text best; it is not added. Raises as `generate`."""
        ...

    async def commit(self) -> Release | None:
        """Have the text computed, for the sake of copies that are about to continue it, and kept
        until they are done: then what this returns is to be called, if that is anything.

        Raises as `generate`. Cancelled, it leaves nothing behind.
        """
        ...

    def text(self) -> str: ...

    def messages(self) -> list[dict[str, str]]:
        """The turns that are over."""
        ...

    async def token_ids(self) -> list[int]:
        """Raises ProgramError where the back end does not know them."""
        ...


class Backend(Protocol):
    """Runs programs."""

    @property
    def loop(self) -> BackgroundLoop:
        """The one event loop in which all its programs run."""
        ...

    def open(self) -> Context:
        """An empty text."""
        ...
