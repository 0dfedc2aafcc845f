"""The turns of a state. Pure."""

from __future__ import annotations

from typing import Self

from jaxsgl.lang.expressions import Role


class Conversation:
    """Turns that are over, and the one that is being written."""

    def __init__(self) -> None:
        self.messages: list[dict[str, str]] = []
        self.role: Role | None = None
        """Of the turn that is being written."""
        self.content = ""
        """Of the turn that is being written."""

    def copy(self) -> Self:
        twin = type(self)()
        twin.messages = self.messages.copy()
        twin.role, twin.content = self.role, self.content
        return twin

    @property
    def roles(self) -> tuple[str, ...]:
        """Of the turns that are over."""
        return tuple(message["role"] for message in self.messages)

    def begin(self, role: Role) -> None:
        self.role, self.content = role, ""

    def add(self, text: str) -> None:
        """Text outside of turns belongs to none."""
        if self.role is not None:
            self.content += text

    def end(self) -> None:
        if self.role is not None:
            self.messages.append({"role": self.role, "content": self.content})
            self.role = None
