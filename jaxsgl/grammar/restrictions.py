"""Which tokens may be drawn, grammar or not: a list of them, and texts that must not come about."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.token_index import TokenIndex
from jaxsgl.grammar.vocabulary import Row, Vocabulary


class Restrictions:
    """Follows the text of one answer, and takes tokens out of its masks."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        index: TokenIndex,
        *,
        allowed_token_ids: Sequence[int] | None = None,
        bad_words: Sequence[str] = (),
    ) -> None:
        """Raises GrammarError for a word that is no text."""
        self._vocabulary = vocabulary
        self._index = index
        self._allowed: Row | None = None
        if allowed_token_ids is not None:
            self._allowed = vocabulary.row_of(np.array(allowed_token_ids, dtype=np.int32))
        try:
            self._words = [word.encode() for word in bad_words]
        except UnicodeEncodeError:
            raise GrammarError("bad_words: a lone surrogate is not a character") from None
        self._never: Row = vocabulary.everything.copy()
        """All tokens but those that contain a word."""
        for word in self._words:
            self._never &= ~vocabulary.row_of(index.containing(word))
        self._completing: dict[bytes, Row] = {}
        """Tokens that begin so, as masks."""
        self._tail_len = max(map(len, self._words), default=1) - 1
        self._tails = [b""]
        """The end of the answer after each of its tokens, as far as a word may have begun in it."""

    def take(self, token_id: int) -> None:
        texts = self._vocabulary.token_bytes
        text = texts[token_id] if token_id < len(texts) else b""
        tail = self._tails[-1] + text
        self._tails.append(tail[len(tail) - self._tail_len :] if self._tail_len else b"")

    def go_back(self, answer_len: int) -> None:
        del self._tails[answer_len + 1 :]

    def apply(self, mask: Row) -> None:
        """Take out of a mask what may not follow."""
        if self._allowed is not None:
            mask &= self._allowed
        tail = self._tails[-1]
        mask &= self._never
        for word in self._words:
            for length in range(1, min(len(word), len(tail) + 1)):
                if tail.endswith(word[:length]):
                    mask &= ~self._beginning_with(word[length:])

    def _beginning_with(self, text: bytes) -> Row:
        row = self._completing.get(text)
        if row is None:
            tokens = self._index.beginning_with(text)
            row = self._completing[text] = self._vocabulary.row_of(tokens)
        return row
