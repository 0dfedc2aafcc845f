"""A state's text on a server: text and messages, no tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Self

from jaxsgl.interface import ChoiceGrammar, DeadlineExceeded, InvalidRequest, SamplingParams
from jaxsgl.lang.backend import Answer, Choice, Release
from jaxsgl.lang.conversation import Conversation
from jaxsgl.lang.errors import ProgramError
from jaxsgl.lang.expressions import Role, SelectMethod
from jaxsgl.lang.http_fields import Dialect

type Events = Callable[[str, dict[str, Any]], AsyncGenerator[dict[str, Any]]]
"""(path, body) to the events of a streamed answer."""
type Hold = Callable[[str], Release]
"""Has a text computed and kept, until what it returns is called."""

MIN_HELD_CHARS = 256
"""About as many tokens as an engine in this process computes by themselves before a fork."""


class HttpContext:
    """A `backend.Context`. A text without turns is a text completion, turns are a chat."""

    def __init__(self, events: Events, dialect: Dialect, hold: Hold | None = None) -> None:
        """`hold` is of a server that can."""
        self._events = events
        self._dialect = dialect
        self._hold = hold
        self._conversation = Conversation()
        self._text = ""
        self._has_loose_text = False

    def copy(self) -> Self:
        twin = type(self)(self._events, self._dialect, self._hold)
        twin._conversation = self._conversation.copy()
        twin._text, twin._has_loose_text = self._text, self._has_loose_text
        return twin

    def add_text(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"text has a lone surrogate at character {error.start}"
            raise InvalidRequest(message, param="prompt") from None
        self._text += text
        self._has_loose_text |= bool(text) and self._conversation.role is None
        self._conversation.add(text)

    def add_answer(self, answer: Answer) -> None:
        self.add_text(answer.text)

    def begin_turn(self, role: Role) -> str:
        """Only the server knows the model's chat template: here a line names the role."""
        self._conversation.begin(role)
        return self._write(f"{role}:\n")

    def end_turn(self) -> str:
        self._conversation.end()
        return self._write("\n")

    async def generate(
        self, sampling: SamplingParams, timeout_s: float | None, on_text: Callable[[str], None]
    ) -> Answer:
        path, body = self._prompt()
        is_chat = path == "chat/completions"
        body |= self._dialect.fields(sampling, is_chat)
        body["stream_options"] = {"include_usage": True}
        try:
            async with asyncio.timeout(timeout_s):
                return await self._receive(path, body, is_chat, on_text)
        except TimeoutError:
            raise DeadlineExceeded("the answer's time is over", code="deadline_exceeded") from None

    async def select(
        self, choices: tuple[str, ...], method: SelectMethod, timeout_s: float | None
    ) -> Choice:
        """Servers do not score given texts. A jaxsgl server picks token by token among them, which
        is greedy selection."""
        if not self._dialect.is_jaxsgl:
            raise ProgramError("select: OpenAI endpoints cannot score choices; use an engine")
        if method != "greedy_token_selection":
            raise ProgramError(
                f"select: a server cannot do {method!r}; use an engine in this process, or "
                "choices_method='greedy_token_selection'"
            )
        sampling = SamplingParams(
            temperature=0.0, grammar=ChoiceGrammar(choices), strict_complete=True
        )
        answer = await self.generate(sampling, timeout_s, lambda text: None)
        return Choice(answer.text, {"method": method, "choices": list(choices), **answer.meta})

    async def commit(self) -> Release | None:
        """Only a text can be committed: how a conversation begins in the model's form, the server
        alone knows. Branches need not wait for it, the server has them wait for each other."""
        if self._hold is None or self._is_chat or len(self._text) < MIN_HELD_CHARS:
            return None
        return self._hold(self._text)

    def text(self) -> str:
        return self._text

    def messages(self) -> list[dict[str, str]]:
        return self._conversation.messages.copy()

    async def token_ids(self) -> list[int]:
        raise ProgramError("token_ids: servers do not tell; use an engine in this process")

    @property
    def _is_chat(self) -> bool:
        return self._conversation.role is not None or bool(self._conversation.messages)

    def _write(self, text: str) -> str:
        self._text += text
        return text

    def _prompt(self) -> tuple[str, dict[str, Any]]:
        """Raises ProgramError for a text that no request can express."""
        conversation = self._conversation
        if not self._is_chat:
            return "completions", {"prompt": self._text}
        if self._has_loose_text:
            raise ProgramError("a server takes either turns or text outside of turns, not both")
        if conversation.role != "assistant":
            raise ProgramError("gen: in a conversation it must stand in an assistant turn")
        if conversation.content:
            raise ProgramError(
                "gen: a server begins an assistant turn anew; nothing may stand before the gen in "
                "its turn. An engine in this process can go on within a turn"
            )
        return "chat/completions", {"messages": conversation.messages.copy()}

    async def _receive(
        self, path: str, body: dict[str, Any], is_chat: bool, on_text: Callable[[str], None]
    ) -> Answer:
        texts: list[str] = []
        logprobs: list[Any] = []
        reason: str | None = None
        usage: dict[str, Any] = {}
        async with aclosing(self._events(path, body)) as events:
            async for event in events:
                usage = event.get("usage") or usage
                for choice in event.get("choices", ()):
                    text = (choice["delta"].get("content") if is_chat else choice["text"]) or ""
                    texts.append(text)
                    on_text(text)
                    if choice.get("logprobs"):
                        logprobs.append(choice["logprobs"])
                    reason = choice.get("finish_reason") or reason
        details = usage.get("prompt_tokens_details") or {}
        meta: dict[str, Any] = {
            "finish_reason": {"type": reason},
            "prompt_tokens": usage.get("prompt_tokens"),
            "completion_tokens": usage.get("completion_tokens"),
            "cached_tokens": details.get("cached_tokens"),
        }
        if logprobs:
            meta["logprobs"] = logprobs
        return Answer("".join(texts), meta)
