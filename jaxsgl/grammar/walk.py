"""Walks of the vocabulary's trie with the lexer alone.

A walk does not see the parser, so its result serves every stack. It is carried out level by level
with NumPy where many nodes are met, and in plain Python where few are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxsgl.grammar.budget import ByteLru
from jaxsgl.grammar.lexer import DEAD, Ending, Lexer
from jaxsgl.grammar.vocabulary import Row, Vocabulary

SMALL = 96
"""Nodes on a level up to which plain Python is faster than a dozen NumPy calls."""
ENTRY_BYTES = 200
"""What an entry of a cache costs beside its arrays, about."""


class Walk(NamedTuple):
    """What the tokens below some nodes do from one lexer state."""

    groups: list[tuple[int, Row | NDArray[np.int32]]]
    """Tokens that end inside a lexeme, by live set: as a mask if many, else as ids."""
    endings: list[tuple[Ending, NDArray[np.int32]]]
    """Nodes before whose byte a lexeme ends. The walk goes on from them once the parser has said
    which lexemes may follow."""
    state: int
    """The lexer state that it began in."""
    starts: NDArray[np.int32]
    """The nodes that it began with: their bytes are the first it read."""
    key: object
    """Under which it, or the walk that it continues, is cached."""
    below: dict[tuple[int, int], Walk]
    """(index of an ending, lexer state) -> the walk that goes on there."""

    @property
    def num_bytes(self) -> int:
        """Of its own, without the walks below it."""
        arrays = [each[1].nbytes for each in (*self.groups, *self.endings)]
        return ENTRY_BYTES * (1 + len(arrays)) + sum(arrays)


type WalkCache = ByteLru[object, Walk]


class _Found:
    """What a walk has met so far, in pieces."""

    def __init__(self) -> None:
        self.tokens: list[NDArray[np.int32]] = []
        self.lives: list[NDArray[np.int32]] = []
        self.nodes: list[NDArray[np.int32]] = []
        self.codes: list[NDArray[np.int32]] = []


class Walker:
    """The walks of one lexer. Those of a single terminal are shared by all lexers of `cache`."""

    def __init__(
        self, lexer: Lexer, patterns: list[str], vocabulary: Vocabulary, cache: WalkCache
    ) -> None:
        """`patterns`: of each terminal; equal ones have equal automata."""
        self._lexer = lexer
        self._patterns = patterns
        self._vocabulary = vocabulary
        self._cache = cache
        self._next = np.full((64, 256), DEAD, dtype=np.int32)
        self._lives = np.zeros(64, dtype=np.int32)
        self._label_codes = np.full(64, DEAD, dtype=np.int32)
        self._filled: set[int] = set()
        self._own = object()
        """Tells the walks of this lexer in the cache from those of others."""
        self._bytes = memoryview(vocabulary.bytes_)
        self._tokens = memoryview(vocabulary.tokens)
        self._first_children = memoryview(vocabulary.first_children)
        self._num_children = memoryview(vocabulary.num_children)
        first = int(vocabulary.first_children[0])
        count = int(vocabulary.num_children[0])
        self._roots = np.arange(first, first + count, dtype=np.int32)

    def from_root(self, state: int) -> Walk:
        """Return what every token does from `state`."""
        key = (self._own, state)
        walk = self._cache.get(key)
        if walk is None:
            walk = self._shared(state, key) or self.walk(state, self._roots, key)
            self._cache.put(key, walk, walk.num_bytes)
        return walk

    def continued(self, walk: Walk, index: int, state: int) -> Walk:
        """Go on from the nodes of an ending, in the state before the next lexeme."""
        found = walk.below.get((index, state))
        if found is None:
            found = self.walk(state, walk.endings[index][1], walk.key)
            walk.below[index, state] = found
            self._cache.grow(walk.key, found.num_bytes)
        return found

    def _shared(self, state: int, key: object) -> Walk | None:
        """The walk from a state of one terminal only, which other grammars may have made; None if
        the state is not such."""
        own = self._lexer.own_threads(state)
        if own is None:
            return None
        terminal, threads = own
        shared_key = (self._patterns[terminal], self._lexer.first_match, threads)
        shared = self._cache.get(shared_key)
        if shared is None:
            walk = self.walk(state, self._roots, key)
            if any(ending.back for ending, _ in walk.endings):
                return walk
            self._cache.put(shared_key, walk._replace(below={}), walk.num_bytes)
            return walk
        live = self._lexer.live_id((terminal,))
        return Walk(
            [(live, payload) for _, payload in shared.groups],
            [(Ending((terminal,)), nodes) for _, nodes in shared.endings],
            state,
            shared.starts,
            key,
            {},
        )

    def walk(self, state: int, nodes: NDArray[np.int32], key: object) -> Walk:
        """Return what the tokens at and below `nodes` do from `state`."""
        vocabulary = self._vocabulary
        found = _Found()
        entry, starts = state, nodes
        states = np.full(len(nodes), state, dtype=np.int32)
        while len(nodes) > SMALL:
            nodes, states = self._step(nodes, states, found)
            counts = vocabulary.num_children[nodes]
            inner = counts > 0
            nodes, states, counts = nodes[inner], states[inner], counts[inner]
            offsets = np.cumsum(counts, dtype=np.int32) - counts
            firsts = np.repeat(vocabulary.first_children[nodes] - offsets, counts)
            nodes = firsts + np.arange(len(firsts), dtype=np.int32)
            states = np.repeat(states, counts)
        if len(nodes):
            self._finish_small(nodes.tolist(), states.tolist(), found)
        return Walk(*self._collected(found), entry, starts, key, {})

    def _step(
        self, nodes: NDArray[np.int32], states: NDArray[np.int32], found: _Found
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Read the byte of every node; return those that live on, with their states."""
        for state in np.flatnonzero(np.bincount(states)).tolist():
            if state not in self._filled:
                self._fill(state)
        following = self._next[states, self._vocabulary.bytes_[nodes]]
        if self._lexer.first_match:
            ended = following < DEAD
            codes = following
        else:
            codes = self._label_codes[states]
            ended = codes != DEAD
        if ended.any():
            found.nodes.append(nodes[ended])
            found.codes.append(codes[ended])
        alive = following >= 0
        nodes, following = nodes[alive], following[alive]
        tokens = self._vocabulary.tokens[nodes]
        spelled = tokens >= 0
        found.tokens.append(tokens[spelled])
        found.lives.append(self._lives[following[spelled]])
        return nodes, following

    def _fill(self, state: int) -> None:
        """Copy what the lexer knows of a state into arrays."""
        lexer = self._lexer
        row = np.array(lexer.row(state), dtype=np.int32)
        while lexer.num_states > len(self._next):
            self._next = np.concatenate([self._next, np.full_like(self._next, DEAD)])
            self._lives = np.concatenate([self._lives, np.zeros_like(self._lives)])
            self._label_codes = np.concatenate(
                [self._label_codes, np.full_like(self._label_codes, DEAD)]
            )
        self._next[state] = row[lexer.byte_classes]
        for each in {state, *row[row >= 0].tolist()}:
            self._lives[each] = lexer.lives[each]
            self._label_codes[each] = lexer.label_codes[each]
        self._filled.add(state)

    def _finish_small(self, nodes: list[int], states: list[int], found: _Found) -> None:
        """Walk everything at and below a few nodes."""
        lexer, bytes_, tokens = self._lexer, self._bytes, self._tokens
        rows, class_of, first_match = lexer.rows, lexer.class_of, lexer.first_match
        token_list: list[int] = []
        live_list: list[int] = []
        node_list: list[int] = []
        code_list: list[int] = []
        work = list(zip(nodes, states, strict=True))
        while work:
            node, state = work.pop()
            following = (rows[state] or lexer.row(state))[class_of[bytes_[node]]]
            code = following if first_match else lexer.label_codes[state]
            if code < DEAD:
                node_list.append(node)
                code_list.append(code)
            if following < 0:
                continue
            if tokens[node] >= 0:
                token_list.append(tokens[node])
                live_list.append(lexer.lives[following])
            count = self._num_children[node]
            if count:
                first = self._first_children[node]
                work += [(child, following) for child in range(first, first + count)]
        found.tokens.append(np.array(token_list, dtype=np.int32))
        found.lives.append(np.array(live_list, dtype=np.int32))
        found.nodes.append(np.array(node_list, dtype=np.int32))
        found.codes.append(np.array(code_list, dtype=np.int32))

    def _collected(
        self, found: _Found
    ) -> tuple[list[tuple[int, Row | NDArray[np.int32]]], list[tuple[Ending, NDArray[np.int32]]]]:
        groups = [
            (live, self._packed(tokens)) for live, tokens in _grouped(found.lives, found.tokens)
        ]
        endings = [
            (self._lexer.endings[-2 - code], nodes)
            for code, nodes in _grouped(found.codes, found.nodes)
        ]
        return groups, endings

    def _packed(self, tokens: NDArray[np.int32]) -> Row | NDArray[np.int32]:
        same_bytes = self._vocabulary.same_bytes
        if same_bytes:
            others = [each for token in tokens.tolist() for each in same_bytes.get(token, ())]
            tokens = np.concatenate([tokens, np.array(others, dtype=np.int32)])
        if len(tokens) * 2 > self._vocabulary.row_len:
            return self._vocabulary.row_of(tokens)
        return tokens


def _grouped(
    keys: list[NDArray[np.int32]], values: list[NDArray[np.int32]]
) -> Iterable[tuple[int, NDArray[np.int32]]]:
    """Yield each key with its values."""
    all_keys = np.concatenate(keys) if keys else np.empty(0, dtype=np.int32)
    if not len(all_keys):
        return
    all_values = np.concatenate(values)
    first = int(all_keys[0])
    if (all_keys == first).all():
        yield first, all_values
        return
    order = np.argsort(all_keys, kind="stable")
    all_keys, all_values = all_keys[order], all_values[order]
    cuts = np.flatnonzero(np.diff(all_keys)) + 1
    firsts = all_keys[np.concatenate([[0], cuts])].tolist()
    yield from zip(firsts, np.split(all_values, cuts), strict=True)
