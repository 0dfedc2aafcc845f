"""What the engine needs of a constraint on one answer, whatever makes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from jaxsgl.grammar.vocabulary import Row

MAX_ROLLBACK = 256
"""Tokens that can be taken back at least."""


class MaskBatch(Protocol):
    """Makes masks for many matchers at once."""

    def fill_masks(self, matchers: Sequence[Any]) -> Sequence[Row]:
        """What `fill_mask` would write for each of them; all are this batch's own. Other threads go
        on meanwhile."""
        ...


class Matcher(Protocol):
    """Follows one answer. Not safe from several threads.

    Nothing raises for what a grammar or a token does: `error` is set instead and stays, every token
    is refused from then on, and masks allow only the tokens that end an answer.
    """

    @property
    def batch(self) -> MaskBatch | None:
        """Where its masks are made best, together with others'; None: each alone."""
        ...

    @property
    def error(self) -> str | None:
        """Why the answer cannot go on, if so."""
        ...

    @property
    def can_end(self) -> bool:
        """Whether what was taken so far is a whole text of the grammar."""
        ...

    @property
    def finished(self) -> bool:
        """Whether a token that ends the answer was taken, or nothing else could follow."""
        ...

    def fill_mask(self, row: Row) -> None:
        """Write the tokens that may come next over `row`, all words of it."""
        ...

    def try_fill_mask(self, row: Row) -> bool:
        """Do the same if it takes no more than microseconds; else return False."""
        ...

    def advance(self, token_id: int) -> bool:
        """Take a token; False, with nothing changed, if it is not allowed."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens, at most MAX_ROLLBACK. Raises ValueError for more than were
        taken."""
        ...

    def fork(self) -> Matcher:
        """Return an independent matcher in the same state."""
        ...

    def forced_bytes(self, max_len: int) -> bytes:
        """Return the bytes that every continuation begins with, at most `max_len`."""
        ...

    def way_out(self) -> bytes | None:
        """Return a text that may come next and brings something of more than a byte or two to its
        end, such as a string that must match a pattern; None if none is known."""
        ...
