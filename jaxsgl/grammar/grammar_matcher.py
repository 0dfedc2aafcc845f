"""The matcher of the project's own engine."""

from __future__ import annotations

from collections import deque

import numpy as np

from jaxsgl.grammar.automaton import Automaton
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.lexer import DEAD
from jaxsgl.grammar.masks import Masks
from jaxsgl.grammar.matcher import MAX_ROLLBACK
from jaxsgl.grammar.parser import Branch
from jaxsgl.grammar.vocabulary import Row, Vocabulary

NOTHING_FITS = "no token of the vocabulary fits the grammar here"


class GrammarMatcher:
    """See `Matcher`. Branches are never changed in place, so taking back and forking copy none."""

    batch = None

    def __init__(self, automaton: Automaton, masks: Masks, vocabulary: Vocabulary) -> None:
        self._automaton = automaton
        self._masks = masks
        self._vocabulary = vocabulary
        self._texts = vocabulary.token_bytes
        self._end_ids = vocabulary.eos_token_ids
        self._branches = automaton.start()
        self._ended = False
        self._history: deque[list[Branch]] = deque(maxlen=MAX_ROLLBACK)
        """The branches before each token."""
        self._mask: Row | None = None
        """Of the present state, if it was asked for; never beside an error."""
        self._error: str | None = None

    @property
    def error(self) -> str | None:
        return self._error

    @property
    def can_end(self) -> bool:
        return self._ended or any(self._automaton.can_end(branch)[0] for branch in self._branches)

    @property
    def finished(self) -> bool:
        if self._ended:
            return True
        return self.can_end and not (self._present_mask() & ~self._vocabulary.ends).any()

    def fill_mask(self, row: Row) -> None:
        row[...] = self._present_mask()

    def try_fill_mask(self, row: Row) -> bool:
        if self._mask is None and not self._ended and self._error is None:
            # Several branches are rare, and joining their masks is not worth a second way.
            if len(self._branches) != 1:
                return False
            kept = self._masks.kept_row(self._branches[0])
            if kept is None:
                return False
            if kept is self._masks.nothing:
                self._error = NOTHING_FITS
            else:
                self._mask = kept
        row[...] = self._present_mask()
        return True

    def advance(self, token_id: int) -> bool:
        texts, mask, before = self._texts, self._mask, self._branches
        if self._error is not None or not 0 <= token_id < len(texts):
            return False
        if mask is not None and not mask.item(token_id >> 5) >> (token_id & 31) & 1:
            return False
        if token_id in self._end_ids:
            return self._end()
        data = texts[token_id]
        if self._ended or not data:
            return False
        try:
            branches = self._automaton.read(before, data)
            if mask is None or len(branches) != 1:
                branches = self._automaton.keep_viable(branches)
        except GrammarError as error:
            self._break(error)
            return False
        if not branches:
            return False
        self._history.append(before)
        self._branches = branches
        self._mask = None
        return True

    def rollback(self, num_tokens: int) -> None:
        if not 0 <= num_tokens <= len(self._history):
            raise ValueError(f"cannot take back {num_tokens} of {len(self._history)} tokens")
        for _ in range(num_tokens):
            self._branches = self._history.pop()
        if num_tokens:
            self._ended = False
            self._mask = None
            self._error = None

    def fork(self) -> GrammarMatcher:
        twin = GrammarMatcher(self._automaton, self._masks, self._vocabulary)
        twin._branches, twin._ended = self._branches, self._ended
        twin._history = self._history.copy()
        twin._mask, twin._error = self._mask, self._error
        return twin

    def forced_bytes(self, max_len: int) -> bytes:
        forced = bytearray()
        branches = self._branches
        try:
            while len(forced) < max_len and not self._ended and self._error is None:
                found = self._only_byte(branches)
                if found is None:
                    break
                branches = found[1]
                forced.append(found[0])
        except GrammarError as error:
            self._break(error)
        return bytes(forced)

    def way_out(self) -> bytes | None:
        """The shortest way to the end of the lexeme, if it has begun and cannot end yet."""
        automaton, lexer = self._automaton, self._automaton.lexer
        try:
            for branch in self._branches:
                state = branch[1]
                if state == DEAD or not lexer.has_started(state) or lexer.labels[state]:
                    continue
                for text in automaton.endings.of(lexer.nfa_states(state)):
                    if automaton.keep_viable(automaton.read([branch], text)):
                        return text
        except GrammarError as error:
            self._break(error)
        return None

    def _end(self) -> bool:
        if self._ended or not self.can_end:
            return False
        self._history.append(self._branches)
        self._ended = True
        self._mask = None
        return True

    def _break(self, error: GrammarError) -> None:
        self._error = str(error)
        self._mask = None

    def _present_mask(self) -> Row:
        mask = self._mask
        if mask is not None:
            return mask
        if self._ended or self._error is not None:
            return self._vocabulary.ends
        masks, branches = self._masks, self._branches
        try:
            mask = masks.row(branches[0]) if len(branches) == 1 else self._joined_mask()
            if mask is masks.nothing:
                raise GrammarError(NOTHING_FITS)
        except GrammarError as error:
            self._break(error)
            return self._vocabulary.ends
        self._mask = mask
        return mask

    def _joined_mask(self) -> Row:
        """What any of several branches allows."""
        nothing = self._masks.nothing
        rows = {id(row): row for row in map(self._masks.row, self._branches) if row is not nothing}
        return np.bitwise_or.reduce(list(rows.values())) if rows else nothing

    def _only_byte(self, branches: list[Branch]) -> tuple[int, list[Branch]] | None:
        """The one byte that may come next and what it leads to; None if there are more or none."""
        automaton = self._automaton
        if any(automaton.can_end(branch)[0] for branch in branches):
            return None
        found: tuple[int, list[Branch]] | None = None
        for byte, count in automaton.lexer.byte_groups:
            following = automaton.keep_viable(automaton.read(branches, bytes((byte,))))
            if not following:
                continue
            if found is not None or count > 1:
                return None
            found = (byte, following)
        return found
