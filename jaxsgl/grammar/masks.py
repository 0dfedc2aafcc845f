"""Exact token masks: lexer walks joined with what the parser can take."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxsgl.grammar.automaton import Automaton, last_bytes
from jaxsgl.grammar.lexer import DEAD, Ending
from jaxsgl.grammar.mask_store import MaskStore
from jaxsgl.grammar.parser import Branch, Stack
from jaxsgl.grammar.vocabulary import Row, Vocabulary
from jaxsgl.grammar.walk import Walk, Walker

MAX_JOINS = 10_000
"""Pairs of stack and walk that are joined for one mask. Only very ambiguous grammars have more;
the mask is then stricter than the grammar."""

type _Join = tuple[Stack, Walk, bytes]


class Masks:
    """The masks of one grammar.

    A mask depends on the lexer's state and on those entries of the stack that reductions looked at
    while it was made, counted from the top. It is kept under exactly these: every other stack that
    ends in them has the same mask, because the same entries would be looked at.

    Safe from several threads: one makes a mask, those that are kept are found meanwhile.
    """

    def __init__(
        self, automaton: Automaton, walker: Walker, vocabulary: Vocabulary, store: MaskStore
    ) -> None:
        self._automaton = automaton
        self._walker = walker
        self._vocabulary = vocabulary
        self._store = store
        self._own = object()
        self._making = threading.Lock()
        self._depths: dict[tuple[object, int, bytes, int], list[int]] = {}
        """Upper part of a key -> how many entries of stacks masks were found to depend on."""
        self.nothing = vocabulary.nothing
        """What `row` returns, this very object, where no token may follow."""

    def kept_row(self, branch: Branch) -> Row | None:
        """Return what `row` would if it takes no making."""
        stack, state, tail = branch
        top = (self._own, state, tail, stack[0])
        for depth in self._depths.get(top, ()):
            row = self._store.get(top if depth == 1 else top + _below(stack, depth))
            if row is not None:
                return row
        return None

    def row(self, branch: Branch) -> Row:
        """Return the tokens that may follow; the row belongs to the store."""
        row = self.kept_row(branch)
        if row is not None:
            return row
        with self._making:
            row = self.kept_row(branch)
            return self._make(branch) if row is None else row

    def _make(self, branch: Branch) -> Row:
        stack, state, tail = branch
        row, low = self._compute(branch)
        top = (self._own, state, tail, stack[0])
        depth = stack[2] - low + 1
        depths = self._depths.get(top, ())
        if depth not in depths:
            self._depths[top] = sorted((*depths, depth))
        if not row.any():
            row = self.nothing
        return self._store.put(top if depth == 1 else top + _below(stack, depth), row)

    def _compute(self, branch: Branch) -> tuple[Row, int]:
        """Return a mask and the least depth of the stack that it depends on."""
        automaton = self._automaton
        stack, state, tail = branch
        row = np.zeros(self._vocabulary.row_len, dtype=np.uint32)
        ends, low = automaton.can_end(branch)
        if ends:
            row |= self._vocabulary.ends
        if state == DEAD:
            return row, low
        tokens: list[NDArray[np.int32]] = []
        work: list[_Join] = [(stack, self._walker.from_root(state), tail)]
        seen: set[tuple[int, int, int]] = set()
        while work and len(seen) < MAX_JOINS:
            stack, walk, tail = work.pop()
            key = (stack[0], id(stack[1]), id(walk))
            if key in seen:
                continue
            seen.add(key)
            for live, payload in walk.groups:
                fits, depth = automaton.fits(stack, live)
                low = min(low, depth)
                if fits and payload.dtype == np.uint32:
                    row |= payload
                elif fits:
                    tokens.append(payload.view(np.int32))
            for index, (ending, _) in enumerate(walk.endings):
                stacks, depth = automaton.after(stack, ending)
                low = min(low, depth)
                if ending.back and stacks:
                    low = 0  # What is read again may reach anything.
                    work += self._joins_after_late(stacks, walk, index, tail)
                else:
                    work += self._joins(stacks, walk, index)
        if tokens:
            row |= self._vocabulary.row_of(np.concatenate(tokens))
        return row, low

    def _joins(self, stacks: Sequence[Stack], walk: Walk, index: int) -> Iterator[_Join]:
        for after in stacks:
            begin = self._automaton.begin(after[0])
            if begin != DEAD:
                yield after, self._walker.continued(walk, index, begin), b""

    def _joins_after_late(
        self, stacks: Sequence[Stack], walk: Walk, index: int, tail: bytes
    ) -> Iterator[_Join]:
        """The lexeme has ended some bytes before the nodes: read those bytes again."""
        automaton = self._automaton
        ending, nodes = walk.endings[index]
        parents = self._vocabulary.parents[nodes]
        for parent in np.unique(parents).tolist():
            group = nodes[parents == parent]
            again = self._tail_at(walk, int(group[0]), tail, ending)
            if again is None:
                continue
            branches = [(after, automaton.begin(after[0]), b"") for after in stacks]
            for after, state, rest in automaton.read(branches, again):
                if state != DEAD:
                    yield after, self._walker.walk(state, group, None), rest

    def _tail_at(self, walk: Walk, node: int, tail: bytes, ending: Ending) -> bytes | None:
        """The bytes to be read again before `node`, whose own byte did not fit."""
        starts = set(walk.starts.tolist())
        path = bytearray()
        while node not in starts:
            node = int(self._vocabulary.parents[node])
            path.append(self._vocabulary.bytes_[node])
        state = walk.state
        lexer = self._automaton.lexer
        for byte in reversed(path):
            state = lexer.row(state)[lexer.class_of[byte]]
            tail = self._automaton.next_tail(tail, byte, state)
        return last_bytes(tail, ending.back)


def _below(stack: Stack, depth: int) -> tuple[int, ...]:
    """The states of the upper `depth` entries but the first."""
    states: list[int] = []
    entry = stack[1]
    while entry is not None and len(states) < depth - 1:
        states.append(entry[0])
        entry = entry[1]
    return tuple(states)
