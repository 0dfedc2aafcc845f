"""Turns prompts into token ids, beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np

from jaxsgl.actors.actor import Actor, Envelope
from jaxsgl.actors.mailbox import Mailbox, MailboxClosed
from jaxsgl.actors.service import ServiceDead
from jaxsgl.interface import ChatPrompt, InvalidRequest, Prompt, TextPrompt, TokenPrompt
from jaxsgl.token_ids import token_array
from jaxsgl.tokenizer import TokenizerError


class PromptTokenizer(Protocol):
    """What the front needs of a tokenizer. Called from several threads at once."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def token_bytes(self) -> list[bytes]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str: ...

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Decode:
    """Token ids whose text is wanted."""

    token_ids: list[int]
    skip_special_tokens: bool


class TextActor(Actor[Prompt | Decode]):
    """Encodes `num_threads` prompts at a time; further ones wait in the mailbox.

    Text always in a thread: a template or a long text would hold up every stream of the event loop.
    Long texts, which take seconds, have a thread and a mailbox of their own: they hold up only each
    other.
    """

    def __init__(self, tokenizer: PromptTokenizer, *, num_threads: int = 2) -> None:
        super().__init__("text")
        self.tokenizer = tokenizer
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads + 1, thread_name_prefix="text")
        self._long: Mailbox[Envelope[Prompt | Decode]] = Mailbox(CAPACITY)

    async def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, at least one, each below the vocabulary's size.

        Raises InvalidRequest, or ServiceDead when the actor has ended.

        Token ids are looked at here and now: prompts that come together go on together, and their
        first step is one for all.
        """
        if isinstance(prompt, TokenPrompt):
            if self.mailbox.closed:
                raise ServiceDead(f"{self.name} has ended")
            return encode_prompt(self.tokenizer, prompt)
        return await self.ask(prompt)

    async def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        """The text of token ids. Raises as `encode` does."""
        return await self.ask(Decode(token_ids, skip_special_tokens))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._num_threads):
                workers.create_task(self._work(self.mailbox))
            workers.create_task(self._work(self._long))

    async def _put(self, envelope: Envelope[Prompt | Decode]) -> None:
        if not is_long(envelope.message):
            await super()._put(envelope)
            return
        try:
            await self._long.put(envelope)
        except MailboxClosed:
            raise ServiceDead(f"{self.name} has ended") from None

    def on_stop_requested(self) -> None:
        super().on_stop_requested()
        self._long.close()

    def on_dead(self, cause: Exception | None) -> None:
        super().on_dead(cause)
        self._long.close()
        self._long.drain()

    async def handle(self, message: Prompt | Decode) -> list[int] | str:
        loop = asyncio.get_running_loop()
        if isinstance(message, Decode):
            return await loop.run_in_executor(self._threads, decode_ids, self.tokenizer, message)
        return await loop.run_in_executor(self._threads, encode_prompt, self.tokenizer, message)

    async def on_stop(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


CAPACITY = 1024
"""Long texts that wait."""
LONG = 32 << 10
"""Characters, or token ids, from which on a text is long."""


def is_long(message: Prompt | Decode) -> bool:
    match message:
        case TextPrompt(text):
            return len(text) >= LONG
        case TokenPrompt():
            return False  # nothing is encoded
        case ChatPrompt():
            with contextlib.suppress(UnicodeEncodeError):  # which is for the tokenizer to refuse
                told = (message.messages, message.tools, message.variables)
                return len(msgspec.json.encode(told)) >= LONG
            return False
        case Decode(token_ids):
            return len(token_ids) >= LONG


def prompt_param(prompt: Prompt) -> str:
    """The request field that a complaint about the prompt names."""
    match prompt:
        case ChatPrompt():
            return "messages"
        case TokenPrompt():
            return prompt.param
        case _:
            return "prompt"


def encode_prompt(tokenizer: PromptTokenizer, prompt: Prompt) -> list[int]:
    """Token ids of a prompt. Raises InvalidRequest if it has none, or not a model's."""
    param = prompt_param(prompt)
    try:
        match prompt:
            case ChatPrompt():
                if not prompt.messages:
                    raise InvalidRequest("messages must not be empty", param=param)
                token_ids = _encode_chat(tokenizer, prompt)
            case TextPrompt(text, add_special_tokens):
                token_ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
            case _:
                token_ids = prompt.token_ids
                _check_token_ids(token_ids, tokenizer.vocab_size)
    except TokenizerError as error:
        raise InvalidRequest(str(error), param=param) from error
    if not token_ids:
        raise InvalidRequest(f"{param} must not be empty", param=param)
    return token_ids


def _encode_chat(tokenizer: PromptTokenizer, prompt: ChatPrompt) -> list[int]:
    variables = dict(prompt.variables)
    if prompt.tools:
        variables["tools"] = prompt.tools
    return tokenizer.encode_chat(
        prompt.messages,
        prompt.add_generation_prompt,
        continue_final_message=prompt.continue_final_message,
        variables=variables,
    )


def decode_ids(tokenizer: PromptTokenizer, message: Decode) -> str:
    """Raises InvalidRequest for ids that are none."""
    try:
        return tokenizer.decode(message.token_ids, message.skip_special_tokens)
    except TokenizerError as error:
        raise InvalidRequest(str(error), param="tokens") from error


def _check_token_ids(token_ids: list[int], vocab_size: int) -> None:
    """Bools and floats are refused: they would index the embedding like integers."""
    try:
        msgspec.convert(token_ids, list[int])
    except msgspec.ValidationError:
        message = "prompt must be text or a list of token ids"
        raise InvalidRequest(message, param="prompt") from None
    try:
        within = not token_ids or int(token_array(token_ids).view(np.uint32).max()) < vocab_size
    except OverflowError:
        within = False
    if not within:
        raise InvalidRequest(f"token ids must be from 0 to {vocab_size - 1}", param="prompt")
