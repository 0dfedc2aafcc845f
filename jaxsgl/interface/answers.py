"""What comes back of a request."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishKind = Literal["stop", "length", "abort", "deadline", "shutdown", "error"]
"""`abort`: somebody asked for it; `shutdown`: the engine ended first."""


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """Why a request ended."""

    kind: FinishKind
    matched: str | int | None = None
    """The stop string or token id that ended it, where one did."""
    message: str | None = None
    """What went wrong, for `error`; why, for `abort`, `deadline` and `shutdown`."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []
    """The most likely (token id, logprob) at this position, best first."""


class Usage(msgspec.Struct, frozen=True, array_like=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens whose KV came from the radix cache at first admission."""


class Delta(msgspec.Struct, frozen=True):
    """What became known of an answer since the last delta. The last one carries `finish`."""

    text: str
    token_ids: list[int]
    usage: Usage
    finish: Finish | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Given once, with the first delta, when it was asked for."""
    weight_version: str | None = None
    """With `finish`: `ModelInfo.weight_version` of the step that ended the answer."""
    embedding: bytes | None = None
    """With `finish`, if it was asked for: the hidden state of the prompt's last token after the
    model's last norm, scaled to length 1, as float32 in the machine's byte order."""
