"""The matcher of answers that no grammar holds."""

from __future__ import annotations

from jaxsgl.grammar.vocabulary import Row, Vocabulary


class FreeMatcher:
    """Takes every token; see `Matcher`."""

    error: str | None = None
    can_end = True

    finished = False
    """What ends the answer is for others to say."""

    batch = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def fill_mask(self, row: Row) -> None:
        row[:] = self._vocabulary.everything

    def try_fill_mask(self, row: Row) -> bool:
        self.fill_mask(row)
        return True

    def advance(self, token_id: int) -> bool:
        return True

    def rollback(self, num_tokens: int) -> None:
        pass

    def fork(self) -> FreeMatcher:
        return self

    def forced_bytes(self, max_len: int) -> bytes:
        return b""

    def way_out(self) -> None:
        return None
