"""What a replica said about one request, until its reader takes it."""

from __future__ import annotations

import asyncio

from jaxsgl.interface import EngineError, TokenLogprob
from jaxsgl.scheduling.outputs import RowOutput


class OutputStream:
    """Rows of one request: the producer never waits, and a slow reader gets them merged into one.

    It holds at most what one request can say, its `max_tokens`. One reader at a time; constructed
    in a running loop.
    """

    def __init__(self) -> None:
        self._rows: list[RowOutput] = []
        self._error: EngineError | None = None
        self._is_complete = False
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    def push(self, row: RowOutput) -> None:
        self._rows.append(row)
        self._is_complete = self._is_complete or row.finish is not None
        self._wake()

    @property
    def is_complete(self) -> bool:
        """Whether the last row is here or was taken."""
        return self._is_complete

    def fail(self, error: EngineError) -> None:
        """There will be no more rows. `take` raises the error once those that are here are
        taken."""
        self._error = error
        self._wake()

    async def take(self) -> RowOutput:
        """All that came since the last call, as one row. Cancelled while it waits, it has taken
        nothing."""
        while not self._rows:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        rows, self._rows = self._rows, []
        return rows[0] if len(rows) == 1 else merge_rows(rows)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def merge_rows(rows: list[RowOutput]) -> RowOutput:
    """One row that says what successive `rows` of a request say. Counts are running totals: the
    last holds."""
    first, last = rows[0], rows[-1]
    logprobs: list[TokenLogprob] | None = None
    if any(row.logprobs is not None for row in rows):
        logprobs = [entry for row in rows for entry in row.logprobs or ()]
    return RowOutput(
        request_id=first.request_id,
        token_ids=[token_id for row in rows for token_id in row.token_ids],
        data=b"".join(row.data for row in rows),
        prompt_tokens=last.prompt_tokens,
        completion_tokens=last.completion_tokens,
        cached_tokens=last.cached_tokens,
        finish=last.finish,
        logprobs=logprobs,
        prompt_logprobs=next(
            (row.prompt_logprobs for row in rows if row.prompt_logprobs is not None), None
        ),
        weight_version=last.weight_version,
        embedding=last.embedding,
    )
