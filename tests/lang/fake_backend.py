"""A back end whose answers the test decides, and which counts what runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Self

from jaxsgl.interface import SamplingParams
from jaxsgl.lang.backend import Answer, Choice, Release
from jaxsgl.lang.conversation import Conversation
from jaxsgl.offline.background import BackgroundLoop

HANG = object()
"""A reply that never comes."""

type Reply = Callable[[str], Any]
"""From the text before it to an answer: a text, an exception to raise, or HANG."""


class FakeBackend:
    def __init__(self, reply: Reply = lambda text: "ok") -> None:
        self.loop = BackgroundLoop("fake")
        self.reply = reply
        self.asked: list[tuple[str, SamplingParams]] = []
        self.commits: list[str] = []
        self.held: list[str] = []
        """Texts that were committed, and are kept."""
        self.num_running = 0
        self.max_running = 0
        self.wait_for_running = 0
        """Answers come once so many have been asked for at a time."""

    def wait_until_released(self) -> None:
        """The back end's thread may hear of an end a moment later."""
        until = time.monotonic() + 60
        while self.held and time.monotonic() < until:
            time.sleep(0.001)
        assert not self.held

    def open(self) -> FakeContext:
        return FakeContext(self)


class FakeContext:
    """Turns are written as <role>…</>."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend
        self._conversation = Conversation()
        self._text = ""

    def copy(self) -> Self:
        twin = type(self)(self._backend)
        twin._conversation, twin._text = self._conversation.copy(), self._text
        return twin

    def add_text(self, text: str) -> None:
        self._text += text
        self._conversation.add(text)

    def add_answer(self, answer: Answer) -> None:
        self.add_text(answer.text)

    def begin_turn(self, role: Any) -> str:
        self._conversation.begin(role)
        self._text += f"<{role}>"
        return f"<{role}>"

    def end_turn(self) -> str:
        self._conversation.end()
        self._text += "</>"
        return "</>"

    async def generate(
        self, sampling: SamplingParams, timeout_s: float | None, on_text: Callable[[str], None]
    ) -> Answer:
        backend = self._backend
        backend.asked.append((self._text, sampling))
        backend.num_running += 1
        backend.max_running = max(backend.max_running, backend.num_running)
        try:
            async with asyncio.timeout(60):
                while backend.max_running < backend.wait_for_running:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            reply = backend.reply(self._text)
            if reply is HANG:
                await asyncio.Event().wait()
            if isinstance(reply, Exception):
                raise reply
            for letter in reply:
                on_text(letter)
                await asyncio.sleep(0)
            return Answer(reply, {"finish_reason": {"type": "stop"}})
        finally:
            backend.num_running -= 1

    async def select(self, choices: tuple[str, ...], method: Any, timeout_s: Any) -> Choice:
        return Choice(choices[-1], {"method": method})

    async def commit(self) -> Release | None:
        backend, text = self._backend, self._text
        backend.commits.append(text)
        if not text:
            return None
        backend.held.append(text)
        return lambda: backend.held.remove(text)

    def text(self) -> str:
        return self._text

    def messages(self) -> list[dict[str, str]]:
        return self._conversation.messages.copy()

    async def token_ids(self) -> list[int]:
        return [ord(letter) for letter in self._text]
