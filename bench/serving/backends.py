"""The dialects of the servers that can be measured: what a request looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.serving.datasets import Message, Prompt, Turn


@dataclass(frozen=True)
class Backend:
    """All stream server-sent events in OpenAI's format."""

    chat: bool
    full_length: Mapping[str, Any]
    """Members that make an answer run to its full length."""

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"


_IGNORE_EOS = {"ignore_eos": True}
BACKENDS: Mapping[str, Backend] = {
    "sglang": Backend(chat=False, full_length=_IGNORE_EOS),
    "jaxsgl": Backend(chat=False, full_length=_IGNORE_EOS),
    "vllm": Backend(chat=False, full_length=_IGNORE_EOS),
    "openai": Backend(chat=False, full_length={}),
    "openai-chat": Backend(chat=True, full_length={}),
}


@dataclass
class Talk:
    """One conversation as a server is to see it, turn by turn."""

    backend: Backend
    messages: list[Message] = field(default_factory=list[Message])
    prompt: str | list[int] = ""

    def ask(self, prompt: Prompt) -> None:
        """Add a question. Where the server takes text only, messages become paragraphs."""
        if self.backend.chat:
            self.messages += _as_messages(prompt)
        elif isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            self.prompt = prompt  # type: ignore[assignment]  # ids have no history to join
        else:
            self.prompt = "\n".join(part for part in (self.prompt, _as_text(prompt)) if part)  # type: ignore[list-item]

    def answer(self, text: str) -> None:
        """Add what the server said. Behind token ids it is lost: there is nothing to encode it."""
        if self.backend.chat:
            self.messages.append({"role": "assistant", "content": text})
        elif isinstance(self.prompt, str):
            self.prompt = f"{self.prompt}\n{text}"

    def body(self, model: str, turn: Turn, more: Mapping[str, Any]) -> dict[str, Any]:
        """The request for an answer to all that was asked; `more` wins over the rest."""
        asked: dict[str, Any] = (
            {"messages": self.messages} if self.backend.chat else {"prompt": self.prompt}
        )
        if turn.schema is None:
            asked |= self.backend.full_length
        else:
            form = {"name": "answer", "schema": turn.schema}
            asked["response_format"] = {"type": "json_schema", "json_schema": form}
        return {
            "model": model,
            **asked,
            "max_tokens": turn.output_len,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }


def _as_messages(prompt: Prompt) -> list[Message]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if all(isinstance(part, dict) for part in prompt):
        return prompt  # type: ignore[return-value]
    raise ValueError("a chat takes no token ids")


def _as_text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt)  # type: ignore[index]
