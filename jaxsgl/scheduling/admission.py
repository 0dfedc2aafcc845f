"""How many requests to let in: optimistic about answers that end early, and taught by its mistakes.

The feedback rule is SGLang's `new_token_ratio`: assume that running requests will use a share of
the tokens they may still generate; let the share fall while all goes well, and raise it to what was
observed when pages ran out.
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxsgl.scheduling.request import Request

INITIAL_RATIO = 0.7
FLOOR_RATIO = 0.1
DECAY_STEPS = 600
RESERVE_LEN = 4096
"""Longest rest of an answer that is reserved for, as a share or whole."""
RETRACT_MARGIN = 20
"""Tokens per request that the ratio after a retraction leaves as head-room."""


class AdmissionController:
    """Estimates the pages that running requests will still take."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self.ratio = INITIAL_RATIO

    def after_step(self) -> None:
        self.ratio = max(FLOOR_RATIO, self.ratio - (INITIAL_RATIO - FLOOR_RATIO) / DECAY_STEPS)

    def after_retraction(self, running: Iterable[Request]) -> None:
        requests = list(running)
        used = sum(r.num_generated for r in requests) + RETRACT_MARGIN * len(requests)
        allowed = sum(r.want_limit - r.prompt_len for r in requests)
        self.ratio = min(1.0, max(self.ratio, used / (allowed + 1)))

    def on_idle(self) -> None:
        self.ratio = INITIAL_RATIO

    def num_reserved(self, running: Iterable[Request]) -> int:
        """Pages that `running` is expected to ask for beyond those it has."""
        pages = 0
        for request in running:
            rest = min(request.want_limit - request.known, RESERVE_LEN)
            expected_len = request.known + int(rest * self.ratio)
            held = 0 if request.lease is None else len(request.lease.pages)
            pages += max(0, self.num_pages(expected_len) - held)
        return pages

    def num_needed(self, request: Request) -> int:
        """Pages in all that a request about to start should find room for."""
        rest = min(request.want_limit - request.known, RESERVE_LEN)
        return self.num_pages(request.known + rest)

    def num_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)
