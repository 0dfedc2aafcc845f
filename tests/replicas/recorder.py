"""A receiver that writes down what it is told."""

from __future__ import annotations

from typing import Any

from tests.actors.waiting import until


class Recorder:
    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.causes: list[Exception | None] = []

    def on_message(self, message: Any) -> None:
        assert not self.causes, "a message after the end"
        self.messages.append(message)

    def on_closed(self, cause: Exception | None) -> None:
        self.causes.append(cause)

    async def until(self, num_messages: int) -> list[Any]:
        await until(lambda: len(self.messages) >= num_messages)
        return self.messages
