"""What every OpenAI-style reply is made of, streamed or whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from msgspec import UNSET, Struct, UnsetType

from jaxsgl.interface import Delta, Finish, Usage


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int


class CompletionTokensDetails(Struct, frozen=True):
    reasoning_tokens: int


class UsageBody(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class UsageMeter:
    """The usage of several answers: each prompt counts once, however many answers it has."""

    def __init__(
        self,
        answers_per_prompt: int,
        reasoning_tokens: Callable[[], int] | None = None,
    ) -> None:
        """`reasoning_tokens` counts those that were reasoning, where that is told apart."""
        self._reasoning_tokens = reasoning_tokens
        self._answers_per_prompt = answers_per_prompt
        self._by_prompt: dict[int, Usage] = {}
        self._completion_tokens: dict[int, int] = {}

    def update(self, index: int, usage: Usage) -> None:
        """Take in what is now known of answer `index`."""
        self._by_prompt.setdefault(index // self._answers_per_prompt, usage)
        self._completion_tokens[index] = usage.completion_tokens

    def total(self) -> UsageBody:
        prompts = self._by_prompt.values()
        prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
        completion_tokens = sum(self._completion_tokens.values())
        return UsageBody(
            prompt_tokens,
            completion_tokens,
            prompt_tokens + completion_tokens,
            PromptTokensDetails(sum(usage.cached_tokens for usage in prompts)),
            UNSET
            if self._reasoning_tokens is None
            else CompletionTokensDetails(self._reasoning_tokens()),
        )


def is_step(delta: Delta) -> bool:
    """Whether a delta is worth an event even without text, so that clients can count and time
    tokens by events: half of a character, what a stop string might claim, a server without a
    tokenizer. With the last delta the closing event does that."""
    return bool(delta.token_ids) and delta.finish is None


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What every body and event of one reply repeats."""

    reply_id: str
    created: int
    """Unix seconds."""
    model: str
    gpu_count: int = 0
    """Devices of the replicas that take requests now."""
    eos_token_ids: tuple[int, ...] = ()

    def stop_reason(self, finish: Finish) -> str | int | None:
        """vLLM's: what ended the answer, unless the model ended it by itself."""
        return None if finish.matched in self.eos_token_ids else finish.matched


class ReplyFormat(Protocol):
    """How one route writes its answers. `index` counts the answers of a request.

    A whole reply is `add` for every delta, then `whole`; a streamed one is the other methods.
    """

    def add(self, index: int, delta: Delta) -> None:
        """Keep a delta. What is costly to format is formatted here, a little at a time."""
        ...

    def whole(self, usage: UsageBody) -> bytes:
        """The body of all answers, each of which has had its last delta."""
        ...

    def opening(self, index: int) -> bytes:
        """What is sent before the first text of an answer."""
        ...

    def text(self, index: int, delta: Delta, usage: UsageBody | None) -> bytes:
        """The event for the text of a delta, with `usage` if given; empty if nothing is new.

        Where `is_step` holds and the format has an event for text, it is sent though it is empty.
        """
        ...

    def closing(self, index: int, finish: Finish) -> bytes:
        """The event that says why an answer ended."""
        ...

    def usage(self, usage: UsageBody) -> bytes:
        """The event after all answers, where it is asked for."""
        ...
