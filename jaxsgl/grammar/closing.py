"""A short way to the end of a grammar's text, for answers whose tokens run out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jaxsgl.grammar.matcher import Matcher
from jaxsgl.grammar.vocabulary import Row, Vocabulary

MAX_CLOSING_LEN = 1024
MAX_CHOICES = 256
"""Bytes in all, and bytes that were not forced, after which no end is looked for any more."""

_PREFERRED = b"}])>\"';:=0123456789"
"""What tends to lead to the end, best first; then letters and the rest, and what tends to lead away
from it last."""
_AVOIDED = b",\\-+.eE{[(< \t\n\r"
_BRACKETS = b"}])>"
MAX_BETWEEN = 32
"""Where at most so many bytes are allowed, the place is taken to be between the parts of a text,
and a bracket among them to close something."""
_TERMINATORS = b"\"'`\n/)>]}"
"""What may end a stretch of free text."""
FREE_TEXT = 90
"""Where more single bytes than this are allowed, the text is taken to be free."""


def _ranks() -> list[int]:
    ranks = [len(_PREFERRED)] * 256
    for rank, byte in enumerate(_PREFERRED):
        ranks[byte] = rank
    for rank, byte in enumerate(_AVOIDED):
        ranks[byte] = 256 + rank
    return ranks


_RANK = tuple(_ranks())


class Closer:
    """Finds ends byte by byte: out of strings and the like by the way that the matcher knows, out
    of other free text by what ends it, elsewhere by the most promising byte that is allowed.

    What it finds is an end, if not always the nearest. It is made for JSON and its like; for a
    grammar in which lists have no brackets it may find none.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        tokens = {
            text[0]: token for token, text in enumerate(vocabulary.token_bytes) if len(text) == 1
        }
        ordered = sorted(tokens, key=_RANK.__getitem__)
        self._byte_tokens = np.array([tokens[byte] for byte in ordered], dtype=np.int64)
        """Tokens of single bytes, the most promising first."""
        self._brackets = {tokens[byte] for byte in _BRACKETS if byte in tokens}
        self._terminators = [tokens[byte] for byte in _TERMINATORS if byte in tokens]

    def closing(self, matcher: Matcher) -> list[int] | None:
        """Tokens after which the text may end, where `matcher` is; None if none are found.

        `matcher` stays where it is.
        """
        twin = matcher.fork()
        path = bytearray()
        for _ in range(MAX_CHOICES):
            tokens = self._vocabulary.spell(twin.forced_bytes(MAX_CLOSING_LEN))
            if not tokens and twin.can_end:
                return self._vocabulary.spell(bytes(path))
            tokens = tokens or self._best(twin)
            if not tokens or len(path) >= MAX_CLOSING_LEN:
                return None
            if not all(twin.advance(token) for token in tokens):
                return None
            path += b"".join(self._vocabulary.token_bytes[token] for token in tokens)
        return None

    def _best(self, matcher: Matcher) -> list[int]:
        allowed = self._allowed(matcher)
        if not len(allowed):
            return []
        if len(allowed) > MAX_BETWEEN or int(allowed[0]) not in self._brackets:
            way_out = matcher.way_out()
            if way_out is not None:
                return self._vocabulary.spell(way_out)
        if len(allowed) > FREE_TEXT:
            for token in self._terminators:
                twin = matcher.fork()
                if twin.advance(token) and len(self._allowed(twin)) <= FREE_TEXT:
                    return [token]
        return allowed[:1].tolist()

    def _allowed(self, matcher: Matcher) -> NDArray[np.int64]:
        """The single bytes that may come next, as tokens, the most promising first."""
        row = np.zeros(self._vocabulary.row_len, dtype=np.uint32)
        matcher.fill_mask(row)
        tokens = self._byte_tokens
        return tokens[(row[tokens >> 5] >> (tokens & 31).astype(np.uint32) & 1) != 0]


MARGIN_LEN = 16
"""The end is gone for when it is so many tokens nearer than the limit, and as many more as a single
token, such as a bracket, can put it farther away."""
MAX_RESERVE = 0.5
"""Of all tokens, what may be set aside for the latter."""
MAX_GROWTH = 8
"""Tokens that a token is taken to put the end away, when it is decided how soon to look again."""


class Steering:
    """Leads one answer to an end of its grammar before its tokens run out."""

    def __init__(
        self, closer: Closer, vocabulary: Vocabulary, max_tokens: int, largest_part: bytes = b""
    ) -> None:
        """`largest_part`: of the grammar, see `CompiledGrammar`."""
        self._closer = closer
        self._max_tokens = max_tokens
        reserve = min(len(vocabulary.spell(largest_part)), int(MAX_RESERVE * max_tokens))
        self._margin_len = MARGIN_LEN + reserve
        self._check_len = 0
        """Tokens of the answer at which the end is looked for again."""
        self._closing: list[int] | None = None
        """Tokens that are still to come, once the end is gone for."""

    def is_slow(self, answer_len: int) -> bool:
        """Whether `steer` would look for the end now."""
        return self._closing is None and answer_len >= self._check_len

    def steer(self, matcher: Matcher, answer_len: int, mask: Row) -> bool:
        """Restrict the mask of the token after `answer_len` if it is time to; True if the answer
        is to end right here."""
        if self.is_slow(answer_len):
            self._look(matcher, answer_len)
        if self._closing is None:
            return False
        if not self._closing:
            return True
        mask[:] = 0
        token = self._closing[0]
        mask[token >> 5] = np.uint32(1 << (token & 31))
        return False

    def take(self, token_id: int) -> None:
        """A token was drawn under the mask."""
        if self._closing is not None and self._closing.pop(0) != token_id:
            self.forget()

    def forget(self) -> None:
        """Start over: the answer is not where it was."""
        self._closing = None
        self._check_len = 0

    def _look(self, matcher: Matcher, answer_len: int) -> None:
        closing = self._closer.closing(matcher)
        rest = self._max_tokens - answer_len
        if closing is None:
            self._check_len = answer_len + max(1, rest // 2)
            return
        spare = rest - len(closing) - self._margin_len
        if spare <= 0:
            self._closing = closing
        else:
            self._check_len = answer_len + max(1, spare // MAX_GROWTH)
