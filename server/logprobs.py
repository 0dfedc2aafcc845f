"""Log-probabilities as the two OpenAI formats show them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable

from msgspec import Struct

from jaxsgl.interface import TokenLogprob

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""

TokenBytes = Callable[[int], bytes]


class TopLogprob(Struct, frozen=True, gc=False):
    token: str
    bytes: list[int]
    logprob: float


class ChatTokenLogprob(Struct, frozen=True, gc=False):
    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True, gc=False):
    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(Struct, frozen=True, gc=False):
    """Four lists, one entry per token each."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """None for the first token of a prompt, which nothing comes before."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where the token starts in the answer, in characters."""

    def extend(self, more: CompletionLogprobs) -> None:
        self.tokens.extend(more.tokens)
        self.token_logprobs.extend(more.token_logprobs)
        self.top_logprobs.extend(more.top_logprobs)
        self.text_offset.extend(more.text_offset)


def chat_logprobs(
    entries: Iterable[TokenLogprob], token_bytes: TokenBytes
) -> list[ChatTokenLogprob]:
    def shown(token_id: int) -> tuple[str, list[int]]:
        data = token_bytes(token_id)
        return data.decode("utf-8", "replace"), list(data)

    return [
        ChatTokenLogprob(
            *shown(entry.token_id),
            finite(entry.logprob),
            [TopLogprob(*shown(token_id), finite(value)) for token_id, value in entry.top],
        )
        for entry in entries
    ]


class CompletionLogprobsWriter:
    """Writes the log-probabilities of one answer, in as many pieces as it comes in."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text_len = 0

    def write(self, entries: Iterable[TokenLogprob]) -> CompletionLogprobs:
        logprobs = CompletionLogprobs([], [], [], [])
        for entry in entries:
            data = self._token_bytes(entry.token_id)
            logprobs.tokens.append(_key(data))
            logprobs.token_logprobs.append(finite(entry.logprob))
            logprobs.top_logprobs.append(self._top(entry))
            logprobs.text_offset.append(self._text_len)
            self._text_len += len(self._decoder.decode(data))
        return logprobs

    def write_prompt(
        self, first_token_id: int, entries: Iterable[TokenLogprob | None]
    ) -> CompletionLogprobs:
        """Of the tokens of a prompt, the first of which has no log-probability."""
        logprobs = CompletionLogprobs([], [], [], [])
        for entry in entries:
            if entry is None:
                only = self.write([TokenLogprob(first_token_id, 0.0)])
                only.token_logprobs[0] = only.top_logprobs[0] = None
                logprobs.extend(only)
            else:
                logprobs.extend(self.write([entry]))
        return logprobs

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The alternatives and the token itself; of two that look alike, the likelier."""
        top: dict[str, float] = {}
        for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            top.setdefault(_key(self._token_bytes(token_id)), finite(logprob))
        return top


def _key(data: bytes) -> str:
    """A token's text, or its bytes spelled out where they are only a part of a character."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """What JSON can say of a log-probability."""
    return max(logprob, LOWEST_LOGPROB)
