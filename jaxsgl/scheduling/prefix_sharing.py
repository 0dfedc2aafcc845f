"""Requests that begin alike: one computes the beginning, the others wait for it and reuse it."""

from __future__ import annotations

from collections.abc import Iterable

from jaxsgl.scheduling.request import Request

MIN_SHARED_LEN = 32
"""Tokens that waiting must save to be worth a turn."""


def is_computing(request: Request) -> bool:
    """Whether enough of a running request's prompt is being computed that others might wait for
    it."""
    if request.published or request.lease is None:
        return False
    return request.prompt_len - request.lease.num_reused >= MIN_SHARED_LEN


def is_worth_waiting(request: Request, match_len: int, prefilling: Iterable[Request]) -> bool:
    """Whether a prompt that is being computed now will soon spare `request` much of its own.

    `match_len` tokens are cached already; of `prefilling`, running requests, `is_computing` is
    true.
    """
    best = match_len + MIN_SHARED_LEN
    return (
        request.known > best
        and any(
            other.namespace == request.namespace
            and other.prompt_len >= best
            # The cheap test first: most prompts differ at the far end of what would be shared.
            and other.tokens[best - 1] == request.tokens[best - 1]
            and other.tokens[:best] == request.tokens[:best]
            for other in prefilling
        )
    )
