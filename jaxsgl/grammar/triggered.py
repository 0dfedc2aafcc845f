"""Grammars that begin within an answer, behind a mark."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxsgl.grammar.matcher import Matcher
from jaxsgl.grammar.token_index import Ids, TokenIndex
from jaxsgl.grammar.vocabulary import Row, Vocabulary

BLANKS = b" \t\r\n"
MAX_BLANK_TOKENS = 4
"""Tokens of white space that may lie between a trigger and the text of the grammar."""


class Trigger:
    """A text after which a grammar begins, and the tokens that would end it in the midst of what
    follows. May be shared."""

    def __init__(self, text: bytes, vocabulary: Vocabulary, index: TokenIndex) -> None:
        self.text = text
        texts = vocabulary.token_bytes

        def runs_over(ids: Ids, begin: bytes) -> Row:
            """Of the tokens, those that go on after `begin` with more than white space."""
            candidates: list[int] = ids.tolist()
            over = [id_ for id_ in candidates if texts[id_].partition(begin)[2].strip(BLANKS)]
            return vocabulary.row_of(np.array(over, dtype=np.int32))

        self._over = [runs_over(index.containing(text), text)]
        """[bytes of the trigger that are there already]: tokens that must not follow."""
        for length in range(1, len(text)):
            rest = text[length:]
            self._over.append(runs_over(index.beginning_with(rest), rest))

    def remove_from(self, mask: Row, tail: bytes) -> None:
        """Take out of a mask the tokens that end the trigger and run over it."""
        mask &= ~self._over[0]
        for length in range(1, len(self.text)):
            if tail.endswith(self.text[:length]):
                mask &= ~self._over[length]


class _State(NamedTuple):
    tail: bytes = b""
    """The end of the free text, in which a trigger may have begun."""
    matcher: Matcher | None = None
    """That of the grammar, once the trigger is there."""
    num_taken: int = 0
    """Tokens that it took."""
    num_blanks: int = 0
    ended: bool = False


class TriggeredMatcher:
    """Leaves an answer free up to a trigger, and holds what follows to a grammar; see `Matcher`.

    With `repeats` the answer is free again after a text of the grammar, and may end wherever it is
    free. Without, it ends as the grammar says.
    """

    batch = None

    def __init__(
        self,
        trigger: Trigger,
        begin: Callable[[], Matcher],
        vocabulary: Vocabulary,
        *,
        repeats: bool,
        blanks: Row,
    ) -> None:
        """`begin` gives a new matcher of the grammar; `blanks` is a mask of white space."""
        self._trigger = trigger
        self._begin = begin
        self._vocabulary = vocabulary
        self._repeats = repeats
        self._blanks = blanks
        self._state = _State()
        self._before: list[tuple[_State, bool]] = []
        """For each token, the state before it and whether the grammar's matcher took it."""

    @property
    def error(self) -> str | None:
        matcher = self._state.matcher
        return None if matcher is None else matcher.error

    @property
    def can_end(self) -> bool:
        state = self._state
        if state.ended:
            return True
        return self._repeats if state.matcher is None else state.matcher.can_end

    @property
    def finished(self) -> bool:
        state = self._state
        if state.ended:
            return True
        return state.matcher is not None and not self._repeats and state.matcher.finished

    def fill_mask(self, row: Row) -> None:
        matcher = self._state.matcher
        if matcher is not None:
            matcher.fill_mask(row)
        self._complete(row)

    def try_fill_mask(self, row: Row) -> bool:
        matcher = self._state.matcher
        if matcher is not None and not matcher.try_fill_mask(row):
            return False
        self._complete(row)
        return True

    def advance(self, token_id: int) -> bool:
        state, by_grammar = self._state, False
        if state.ended:
            return False
        after = None
        if state.matcher is not None:
            after, by_grammar = self._in_grammar(state, state.matcher, token_id)
        elif token_id in self._vocabulary.eos_token_ids:
            after = state._replace(ended=True) if self._repeats else None
        else:
            after = self._free(state.tail, token_id)
        if after is None:
            return False
        self._before.append((state, by_grammar))
        self._state = after
        return True

    def rollback(self, num_tokens: int) -> None:
        if not 0 <= num_tokens <= len(self._before):
            raise ValueError(f"cannot take back {num_tokens} of {len(self._before)} tokens")
        for _ in range(num_tokens):
            self._state, by_grammar = self._before.pop()
            if by_grammar:
                assert self._state.matcher is not None
                self._state.matcher.rollback(1)

    def fork(self) -> TriggeredMatcher:
        """The twin remembers no tokens: it cannot go back behind this place."""
        twin = TriggeredMatcher(
            self._trigger,
            self._begin,
            self._vocabulary,
            repeats=self._repeats,
            blanks=self._blanks,
        )
        matcher = self._state.matcher
        twin._state = self._state._replace(matcher=None if matcher is None else matcher.fork())
        return twin

    def forced_bytes(self, max_len: int) -> bytes:
        matcher = self._state.matcher
        if matcher is None or self._repeats:
            return b""
        return matcher.forced_bytes(max_len)

    def way_out(self) -> bytes | None:
        matcher = self._state.matcher
        return None if matcher is None else matcher.way_out()

    def _complete(self, row: Row) -> None:
        """Make of the grammar's mask, if it has begun, that of the whole answer."""
        state = self._state
        if state.ended:
            row[:] = self._vocabulary.ends
        elif state.matcher is None:
            self._fill_free(row, state.tail)
        elif not state.num_taken and state.num_blanks < MAX_BLANK_TOKENS:
            row |= self._blanks
        elif self._repeats and state.matcher.can_end:
            free = np.empty_like(row)
            self._fill_free(free, b"")
            row |= free

    def _fill_free(self, row: Row, tail: bytes) -> None:
        row[:] = self._vocabulary.everything
        self._trigger.remove_from(row, tail)
        if not self._repeats:
            row &= ~self._vocabulary.ends

    def _in_grammar(
        self, state: _State, matcher: Matcher, token_id: int
    ) -> tuple[_State | None, bool]:
        could_end = matcher.can_end
        if matcher.advance(token_id):
            after = state._replace(num_taken=state.num_taken + 1)
            if self._repeats and matcher.finished:
                ended = token_id in self._vocabulary.eos_token_ids
                after = _State(ended=True) if ended else _State()
            return after, True
        if not state.num_taken and self._is_blank(token_id):
            return state._replace(num_blanks=state.num_blanks + 1), False
        if self._repeats and could_end and state.num_taken:
            if token_id in self._vocabulary.eos_token_ids:
                return _State(ended=True), False
            return self._free(b"", token_id), False
        return None, False

    def _free(self, tail: bytes, token_id: int) -> _State | None:
        texts = self._vocabulary.token_bytes
        text = tail + (texts[token_id] if token_id < len(texts) else b"")
        before, found, rest = text.partition(self._trigger.text)
        if found:
            return None if rest.strip(BLANKS) else _State(matcher=self._begin())
        return _State(tail=before[max(0, len(before) - len(self._trigger.text) + 1) :])

    def _is_blank(self, token_id: int) -> bool:
        return bool(self._blanks[token_id // 32] >> np.uint32(token_id % 32) & np.uint32(1))


def blank_tokens(vocabulary: Vocabulary) -> Row:
    """A mask of the tokens that are nothing but white space."""
    blanks = [
        token
        for token, text in enumerate(vocabulary.token_bytes)
        if text and not text.strip(BLANKS)
    ]
    return vocabulary.row_of(np.array(blanks, dtype=np.int32))
