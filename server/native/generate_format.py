"""The bodies and events of /generate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Raw, Struct

from jaxsgl.interface import Delta, Finish, TokenLogprob
from server.logprobs import TokenBytes, finite
from server.native.generate_requests import NativeRequest
from server.replies import UsageBody
from server.sse import event

Triple = tuple[float | None, int, str | None]
"""Log-probability, token id and, where asked for, the token's text."""


class FinishReason(Struct, frozen=True, omit_defaults=True):
    type: str
    matched: str | int | None = None
    length: int | None = None
    message: str | None = None


class MetaInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    weight_version: str | None = None
    """With `finish_reason`: of the weights that ended the answer."""
    e2e_latency: float
    """Seconds from the request's arrival."""
    input_token_logprobs: list[Triple] | None = None
    output_token_logprobs: list[Triple] | None = None
    input_top_logprobs: list[list[Triple] | None] | None = None
    output_top_logprobs: list[list[Triple] | None] | None = None


class GenerateReply(Struct, frozen=True, kw_only=True, omit_defaults=True):
    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    gpu_count: int | None = msgspec.field(default=None, name="x-sglang-gpu-count")
    """Of a whole answer: devices of the replicas that take requests."""
    index: int | None = None
    """In the events of several answers: whose this is."""


@dataclass(slots=True)
class _Answer:
    asked: NativeRequest
    text: str = ""
    output_ids: list[int] = field(default_factory=list[int])
    last: Delta | None = None
    # Written as they come: every event repeats them all.
    input_logprobs: Raw = field(default_factory=lambda: Raw(b"[]"))
    input_top: Raw = field(default_factory=lambda: Raw(b"[]"))
    output_logprobs: list[Raw] = field(default_factory=list[Raw])
    output_top: list[Raw] = field(default_factory=list[Raw])


class GenerateFormat:
    """A ReplyFormat."""

    def __init__(
        self,
        requests: Sequence[NativeRequest],
        token_bytes: TokenBytes,
        *,
        as_list: bool,
        with_text: bool,
        gpu_count: int,
    ) -> None:
        """`with_text` shows the texts of tokens beside their log-probabilities."""
        self._answers = [_Answer(request) for request in requests]
        self._token_bytes = token_bytes
        self._as_list = as_list
        self._with_text = with_text
        self._gpu_count = gpu_count
        self._started_s = time.perf_counter()

    def add(self, index: int, delta: Delta) -> None:
        answer = self._answers[index]
        answer.text += delta.text
        answer.output_ids += delta.token_ids
        answer.last = delta
        for entry in delta.logprobs or ():
            answer.output_logprobs.append(_raw(self._triple(entry.token_id, entry.logprob)))
            answer.output_top.append(_raw(self._top(entry)))
        scored_ids = answer.asked.scored_ids
        if delta.prompt_logprobs is not None and scored_ids is not None:
            scored = delta.prompt_logprobs[len(delta.prompt_logprobs) - len(scored_ids) :]
            logprobs = [None if entry is None else entry.logprob for entry in scored]
            answer.input_logprobs = _raw(list(map(self._triple, scored_ids, logprobs)))
            answer.input_top = _raw(
                [None if entry is None else self._top(entry) for entry in scored]
            )

    def whole(self, usage: UsageBody) -> bytes:
        replies = [self._reply(index, gpu_count=self._gpu_count) for index in self._indices()]
        return msgspec.json.encode(replies if self._as_list else replies[0])

    def opening(self, index: int) -> bytes:
        return b""

    def text(self, index: int, delta: Delta, usage: UsageBody | None) -> bytes:
        self.add(index, delta)
        if delta.finish is not None or not delta.token_ids:
            return b""
        return self._event(index)

    def closing(self, index: int, finish: Finish) -> bytes:
        return self._event(index)

    def usage(self, usage: UsageBody) -> bytes:
        return b""

    def _indices(self) -> range:
        return range(len(self._answers))

    def _event(self, index: int) -> bytes:
        reply = self._reply(index, answer_index=index if self._as_list else None)
        return event(msgspec.json.encode(reply))

    def _reply(
        self, index: int, *, gpu_count: int | None = None, answer_index: int | None = None
    ) -> GenerateReply:
        answer = self._answers[index]
        return GenerateReply(
            text=answer.text,
            output_ids=answer.output_ids,
            meta_info=self._meta_info(answer),
            gpu_count=gpu_count,
            index=answer_index,
        )

    def _meta_info(self, answer: _Answer) -> MetaInfo:
        assert answer.last is not None
        usage, finish = answer.last.usage, answer.last.finish
        sampling = answer.asked.request.sampling
        scored, drawn = answer.asked.scored_ids is not None, sampling.logprobs is not None
        written: dict[str, Any] = {}
        if scored or drawn:
            written["input_token_logprobs"] = answer.input_logprobs
        if drawn:
            written["output_token_logprobs"] = answer.output_logprobs
        if sampling.logprobs:
            written["input_top_logprobs"] = answer.input_top
            written["output_top_logprobs"] = answer.output_top
        return MetaInfo(
            id=answer.asked.request.request_id,
            finish_reason=None if finish is None else _finish_reason(finish, answer.output_ids),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            weight_version=answer.last.weight_version,
            e2e_latency=round(time.perf_counter() - self._started_s, 6),
            **written,
        )

    def _triple(self, token_id: int, logprob: float | None) -> Triple:
        text = None
        if self._with_text:
            text = self._token_bytes(token_id).decode("utf-8", "replace")
        return (None if logprob is None else finite(logprob), token_id, text)

    def _top(self, entry: TokenLogprob) -> list[Triple]:
        return [self._triple(token_id, logprob) for token_id, logprob in entry.top]


def _raw(value: object) -> Raw:
    return Raw(msgspec.json.encode(value))


def _finish_reason(finish: Finish, output_ids: list[int]) -> FinishReason:
    match finish.kind:
        case "length":
            return FinishReason("length", length=len(output_ids))
        case "stop":
            return FinishReason("stop", matched=finish.matched)
        case _:
            return FinishReason(finish.kind, message=finish.message)
