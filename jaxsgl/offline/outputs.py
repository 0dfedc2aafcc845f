"""Answers in the shape that SGLang's users know."""

from __future__ import annotations

from typing import Any

from jaxsgl.interface import Delta, Finish, GenerateRequest, TokenLogprob, TokenPrompt, Usage
from jaxsgl.offline.calls import Logprobs
from jaxsgl.vectors import floats_of


class Output:
    """One answer, growing by deltas."""

    def __init__(self, request: GenerateRequest, logprobs: Logprobs) -> None:
        self._request = request
        self._wanted = logprobs
        self._text = ""
        self._token_ids: list[int] = []
        self._usage = Usage(0, 0, 0)
        self._finish: Finish | None = None
        self._weight_version: str | None = None
        self._embedding: bytes | None = None
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob | None] = []

    def add(self, delta: Delta) -> None:
        self._text += delta.text
        self._token_ids += delta.token_ids
        self._usage = delta.usage
        self._finish = delta.finish
        self._weight_version = delta.weight_version
        self._embedding = delta.embedding
        self._logprobs += delta.logprobs or ()
        self._prompt_logprobs += delta.prompt_logprobs or ()

    def as_dict(self) -> dict[str, Any]:
        """All there is so far; what is in it no longer changes."""
        usage = self._usage
        meta_info: dict[str, Any] = {
            "id": self._request.request_id,
            "finish_reason": None if self._finish is None else _finish_reason(self._finish, usage),
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        }
        if self._finish is not None:
            meta_info["weight_version"] = self._weight_version
        if self._wanted.wanted:
            meta_info |= self._logprob_info()
        if self._request.sampling.embedding:
            embedding = None if self._embedding is None else floats_of(self._embedding)
            return {"embedding": embedding, "meta_info": meta_info}
        return {"text": self._text, "output_ids": list(self._token_ids), "meta_info": meta_info}

    def _logprob_info(self) -> dict[str, Any]:
        """Entries are (log-probability, token id, None). Of the first prompt token only the id is
        known, and that only if the prompt was given as ids."""
        start_len = self._wanted.start_len
        prompt = self._prompt_logprobs[start_len:] if start_len >= 0 else []
        info: dict[str, Any] = {
            "input_token_logprobs": [self._entry(entry) for entry in prompt],
            "output_token_logprobs": [self._entry(entry) for entry in self._logprobs],
        }
        if self._wanted.num_top:
            info["input_top_logprobs"] = [_top_entries(entry) for entry in prompt]
            info["output_top_logprobs"] = [_top_entries(entry) for entry in self._logprobs]
        return info

    def _entry(self, entry: TokenLogprob | None) -> tuple[float | None, int | None, None]:
        if entry is not None:
            return entry.logprob, entry.token_id, None
        prompt = self._request.prompt
        return None, prompt.token_ids[0] if isinstance(prompt, TokenPrompt) else None, None


def _finish_reason(finish: Finish, usage: Usage) -> dict[str, Any]:
    """`type` is stop, length, abort, deadline or error; the rest depends on it."""
    reason: dict[str, Any] = {"type": finish.kind}
    match finish.kind:
        case "stop":
            reason["matched"] = finish.matched
        case "length":
            reason["length"] = usage.completion_tokens
        case _:
            reason["message"] = finish.message
    return reason


def _top_entries(entry: TokenLogprob | None) -> list[tuple[float, int, None]] | None:
    return None if entry is None else [(value, token_id, None) for token_id, value in entry.top]
