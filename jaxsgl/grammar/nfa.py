"""A nondeterministic automaton over bytes for all terminals of a grammar, as plain lists."""

from __future__ import annotations

import msgspec

from jaxsgl.grammar.codepoints import Ranges, utf8_sequences
from jaxsgl.grammar.errors import GrammarError


class LookBehind(msgspec.Struct, frozen=True):
    """The state may only be entered if the byte before is (or, negated, is not) one of these."""

    bytes_: bytes
    negated: bool


class LookAhead(msgspec.Struct, frozen=True):
    """The state may only be entered if what follows is (or is not) matched from `start` to
    `end`."""

    start: int
    end: int
    negated: bool


class Nfa(msgspec.Struct):
    """States are numbered; those of one terminal are contiguous.

    The order of `silent` moves is the order in which a backtracking matcher would try them.
    """

    silent: list[list[int]] = msgspec.field(default_factory=list)
    """[state]: states reached without a byte."""
    moves: list[list[tuple[int, int, int]]] = msgspec.field(default_factory=list)
    """[state]: (first byte, last byte, target)."""
    terminals: list[int] = msgspec.field(default_factory=list)
    """[state]: the terminal it belongs to."""
    starts: list[int] = msgspec.field(default_factory=list)
    """[terminal]"""
    accepts: list[int] = msgspec.field(default_factory=list)
    """[terminal]: its only accepting state."""
    behind: dict[int, LookBehind] = msgspec.field(default_factory=dict)
    ahead: dict[int, LookAhead] = msgspec.field(default_factory=dict)


def matches_nothing(nfa: Nfa, terminal: int) -> bool:
    """Whether a terminal of a finished automaton has no text at all."""
    start = nfa.starts[terminal]
    return not nfa.silent[start] and not nfa.moves[start] and start != nfa.accepts[terminal]


class NfaBuilder:
    """Adds terminals one after the other; raises GrammarError beyond `max_states`."""

    def __init__(self, max_states: int) -> None:
        self.nfa = Nfa()
        self._max_states = max_states

    def finish(self) -> Nfa:
        """Return the automaton without moves that lead nowhere."""
        nfa = self.nfa
        sources: list[list[int]] = [[] for _ in nfa.silent]
        for source, (silent, moves) in enumerate(zip(nfa.silent, nfa.moves, strict=True)):
            for target in (*silent, *(move[2] for move in moves)):
                sources[target].append(source)
        work = [*nfa.accepts, *(look.end for look in nfa.ahead.values())]
        useful = set(work)
        while work:
            for source in sources[work.pop()]:
                if source not in useful:
                    useful.add(source)
                    work.append(source)
        nfa.silent = [[each for each in targets if each in useful] for targets in nfa.silent]
        nfa.moves = [[each for each in moves if each[2] in useful] for moves in nfa.moves]
        return nfa

    def begin_terminal(self) -> int:
        """Return the start state of the next terminal."""
        self.nfa.starts.append(len(self.nfa.silent))
        return self.add_state()

    def end_terminal(self, accept: int) -> None:
        self.nfa.accepts.append(accept)

    def check_room(self, num_states: int) -> None:
        """Raise GrammarError unless so many states may still be added."""
        if len(self.nfa.silent) + num_states > self._max_states:
            raise GrammarError(f"the terminals need more than {self._max_states} automaton states")

    def add_state(self) -> int:
        nfa = self.nfa
        self.check_room(1)
        nfa.silent.append([])
        nfa.moves.append([])
        nfa.terminals.append(len(nfa.starts) - 1)
        return len(nfa.silent) - 1

    def add_silent(self, source: int, *targets: int) -> None:
        """Targets in order of preference."""
        self.nfa.silent[source].extend(targets)

    def add_characters(self, source: int, ranges: Ranges) -> int:
        """Return a state reached from `source` by any one character of `ranges`."""
        target = self.add_state()
        moves = self.nfa.moves
        if ranges and ranges[-1][1] < 0x80:
            moves[source] += [(low, high, target) for low, high in ranges]
            return target
        # Sequences that end alike share their last states.
        tails: dict[tuple[tuple[int, int], ...], int] = {(): target}
        for sequence in utf8_sequences(ranges):
            for start in range(len(sequence) - 1, 0, -1):
                if sequence[start:] not in tails:
                    state = tails[sequence[start:]] = self.add_state()
                    moves[state].append((*sequence[start], tails[sequence[start + 1 :]]))
            moves[source].append((*sequence[0], tails[sequence[1:]]))
        return target

    def add_literals(self, texts: list[bytes]) -> None:
        """Add a terminal that matches any of `texts`, as a trie."""
        start = self.begin_terminal()
        accept = self.add_state()
        self.end_terminal(accept)
        children: dict[tuple[int, int], int] = {}
        for text in texts:
            state = start
            for byte in text:
                child = children.get((state, byte))
                if child is None:
                    child = children[state, byte] = self.add_state()
                    self.nfa.moves[state].append((byte, byte, child))
                state = child
            if accept not in self.nfa.silent[state]:
                self.add_silent(state, accept)
