"""The bodies and events of /v1/completions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET, Struct, UnsetType

from jaxsgl.interface import Delta, Finish, TokenLogprob
from server.logprobs import CompletionLogprobs, CompletionLogprobsWriter, TokenBytes
from server.replies import ReplyHead, UsageBody, is_step
from server.sse import TextEvent, event


class CompletionChoice(Struct, frozen=True):
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    matched_stop: str | int | None
    """The stop text or token id that ended the answer, where one did."""
    stop_reason: str | int | None
    text: str
    token_ids: list[int] | UnsetType = UNSET
    """With `return_token_ids`: of an event, those that it brings."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """The same; once in a stream."""


class Completion(Struct, frozen=True, omit_defaults=True):
    """A whole answer, and an event of a streamed one: OpenAI gives both the same shape."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[CompletionChoice]
    usage: UsageBody | None = None
    gpu_count: int | None = msgspec.field(default=None, name="x-sglang-gpu-count")
    """Of a whole answer."""


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that its answers begin with."""

    text: str
    token_ids: list[int]


@dataclass(slots=True)
class _Answer:
    texts: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: CompletionLogprobs | None = None
    sum_logprobs: float = 0.0
    finish: Finish | None = None

    @property
    def mean_logprob(self) -> float:
        return self.sum_logprobs / max(1, len(self.token_ids))


class CompletionFormat:
    """A ReplyFormat."""

    def __init__(
        self,
        head: ReplyHead,
        token_bytes: TokenBytes,
        *,
        n: int = 1,
        best_of: int = 1,
        echoes: Sequence[Echo] = (),
        with_logprobs: bool = True,
        shown_ids: Sequence[list[int]] = (),
    ) -> None:
        """Of `best_of` answers per prompt, `n` are shown. `echoes`, by prompt, come before their
        answers. With `shown_ids`, the ids of each prompt, those of the answers are shown too."""
        self._head = head
        self._token_bytes = token_bytes
        self._n, self._best_of = n, best_of
        self._echoes = echoes
        self._with_logprobs = with_logprobs
        self._shown_ids = shown_ids
        self._begun: set[int] = set()
        self._echoed: set[int] = set()
        self._answers: defaultdict[int, _Answer] = defaultdict(_Answer)
        self._text_events: dict[int, TextEvent] = {}
        self._logprobs_writers: dict[int, CompletionLogprobsWriter] = {}

    def add(self, index: int, delta: Delta) -> None:
        answer = self._answers[index]
        text, logprobs = self._news(index, delta)
        answer.texts.append(text)
        answer.finish = delta.finish
        answer.sum_logprobs += sum(entry.logprob for entry in delta.logprobs or ())
        answer.token_ids += delta.token_ids
        if answer.logprobs is None:
            answer.logprobs = logprobs
        elif logprobs is not None:
            answer.logprobs.extend(logprobs)

    def whole(self, usage: UsageBody) -> bytes:
        shown = [self._answers[index] for index in sorted(self._answers)]
        if self._best_of > self._n:
            shown = [answer for group in self._by_prompt(shown) for answer in group[: self._n]]
        choices = [self._choice(index, answer) for index, answer in enumerate(shown)]
        return msgspec.json.encode(
            self._completion(*choices, usage=usage, gpu_count=self._head.gpu_count)
        )

    def opening(self, index: int) -> bytes:
        return b""

    def text(self, index: int, delta: Delta, usage: UsageBody | None) -> bytes:
        text, logprobs = self._news(index, delta)
        if self._shown_ids and delta.token_ids:
            ids = self._new_ids(index, delta)
            choice = CompletionChoice(index, logprobs, None, None, None, text, *ids)
            return self._event(choice, usage=usage)
        if logprobs is None and usage is None:
            return self._text_event(index)(text) if text or is_step(delta) else b""
        return self._event(CompletionChoice(index, logprobs, None, None, None, text), usage=usage)

    def closing(self, index: int, finish: Finish) -> bytes:
        return self._event(self._end(index, finish))

    def usage(self, usage: UsageBody) -> bytes:
        return self._event(usage=usage)

    def _by_prompt(self, answers: list[_Answer]) -> Iterator[list[_Answer]]:
        """The answers of each prompt, the likeliest first."""
        for first in range(0, len(answers), self._best_of):
            group = answers[first : first + self._best_of]
            yield sorted(group, key=lambda answer: -answer.mean_logprob)

    def _choice(self, index: int, answer: _Answer) -> CompletionChoice:
        assert answer.finish is not None
        end = self._end(index, answer.finish)
        shown = msgspec.structs.replace(end, logprobs=answer.logprobs, text="".join(answer.texts))
        if not self._shown_ids:
            return shown
        prompt_ids = self._shown_ids[index // self._n]
        return msgspec.structs.replace(
            shown, token_ids=answer.token_ids, prompt_token_ids=prompt_ids
        )

    def _end(self, index: int, finish: Finish) -> CompletionChoice:
        reason = self._head.stop_reason(finish)
        return CompletionChoice(index, None, finish.kind, finish.matched, reason, "")

    def _news(self, index: int, delta: Delta) -> tuple[str, CompletionLogprobs | None]:
        """What a delta brings, the prompt before it if that is to be echoed."""
        text, logprobs = delta.text, self._logprobs(index, delta.logprobs)
        if self._echoes and index not in self._echoed:
            self._echoed.add(index)
            echo = self._echoes[index // self._best_of]
            text = echo.text + text
            if delta.prompt_logprobs is not None:
                writer = CompletionLogprobsWriter(self._token_bytes)
                before = writer.write_prompt(echo.token_ids[0], delta.prompt_logprobs)
                self._logprobs_writers[index] = writer
                if after := self._logprobs(index, delta.logprobs):
                    before.extend(after)
                logprobs = before
        return text, logprobs

    def _new_ids(self, index: int, delta: Delta) -> tuple[list[int], list[int] | UnsetType]:
        """Those of an event, and before the first those of its prompt."""
        if index in self._begun:
            return delta.token_ids, UNSET
        self._begun.add(index)
        return delta.token_ids, self._shown_ids[index // self._best_of]

    def _logprobs(
        self, index: int, entries: list[TokenLogprob] | None
    ) -> CompletionLogprobs | None:
        if not entries or not self._with_logprobs:
            return None
        if index not in self._logprobs_writers:
            self._logprobs_writers[index] = CompletionLogprobsWriter(self._token_bytes)
        return self._logprobs_writers[index].write(entries)

    def _text_event(self, index: int) -> TextEvent:
        if index not in self._text_events:
            self._text_events[index] = TextEvent(
                lambda text: self._completion(CompletionChoice(index, None, None, None, None, text))
            )
        return self._text_events[index]

    def _event(self, *choices: CompletionChoice, usage: UsageBody | None = None) -> bytes:
        return event(msgspec.json.encode(self._completion(*choices, usage=usage)))

    def _completion(
        self,
        *choices: CompletionChoice,
        usage: UsageBody | None = None,
        gpu_count: int | None = None,
    ) -> Completion:
        head = self._head
        return Completion(
            head.reply_id, "text_completion", head.created, head.model, choices, usage, gpu_count
        )
