"""Rows of one request as deltas for its reader, whichever replicas they come from."""

from __future__ import annotations

from jaxsgl.actors.messages import Told
from jaxsgl.interface import DeadlineExceeded, Delta, Finish, Unavailable, Usage
from jaxsgl.scheduling.outputs import RowOutput
from jaxsgl.tokenizer import Utf8Stream


class Answer:
    """Takes what was read of a request's streams, one replica after another."""

    def __init__(self) -> None:
        self._text = Utf8Stream()
        self._token_ids: list[int] = []
        self._cached_tokens: int | None = None

    @property
    def told(self) -> Told | None:
        """What the next replica must know of it; None if it begins there."""
        if not self._token_ids:
            return None
        return Told(list(self._token_ids), self._cached_tokens or 0)

    def add(self, row: RowOutput) -> Delta:
        """What the row adds; the last delta carries `finish`.

        Raises DeadlineExceeded when the request's time is over, Unavailable when the replica was
        ordered to end before the answer did.
        """
        text = self._text.feed(row.data)
        if row.finish is not None:
            _raise_if_cut_off(row.finish)
            text += self._text.finish()
        self._token_ids += row.token_ids
        if self._cached_tokens is None:
            self._cached_tokens = row.cached_tokens
        usage = Usage(row.prompt_tokens, row.completion_tokens, self._cached_tokens)
        return Delta(
            text,
            row.token_ids,
            usage,
            row.finish,
            row.logprobs,
            row.prompt_logprobs,
            row.weight_version,
            row.embedding,
        )

    def end(self, finish: Finish, prompt_len: int) -> Delta:
        """The last delta of an answer that ends while no replica has it."""
        usage = Usage(prompt_len, len(self._token_ids), self._cached_tokens or 0)
        return Delta(self._text.finish(), [], usage, finish)


def _raise_if_cut_off(finish: Finish) -> None:
    match finish.kind:
        case "deadline":
            raise DeadlineExceeded(finish.message or "", code="deadline_exceeded")
        case "shutdown":
            raise Unavailable(finish.message or "")
        case _:
            pass
