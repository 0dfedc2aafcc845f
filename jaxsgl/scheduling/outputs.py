"""What a step brought each request, ready to be sent to whoever waits for it."""

from __future__ import annotations

import msgspec

from jaxsgl.interface import Finish, TokenLogprob


class RowOutput(msgspec.Struct, frozen=True, array_like=True):
    """What one step brought one request."""

    request_id: str
    token_ids: list[int]
    data: bytes
    """The text of those tokens; bytes that a stop string might still claim come later."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    finish: Finish | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    weight_version: str | None = None
    """With `finish`: see `interface.Delta`."""
    embedding: bytes | None = None
    """The same."""


class SchedulerOutputs(msgspec.Struct, frozen=True):
    """What `Scheduler.apply` and `Scheduler.take_outputs` hand out."""

    rows: list[RowOutput]
    released: list[str]
    """Requests of which nothing is left: no page, slot or lock."""
