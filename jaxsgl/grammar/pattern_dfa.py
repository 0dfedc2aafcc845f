"""A regular expression as a byte automaton that is followed from many places of a text at once."""

from __future__ import annotations

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.nfa import Nfa, NfaBuilder
from jaxsgl.grammar.regex import add_regex

MAX_NFA_STATES = 4_000
MAX_STATES = 500
"""DFA states that are remembered; beyond them all are forgotten and made again as they are met."""

type State = frozenset[int]

DEAD: State = frozenset()


class PatternDfa:
    """Determinised as far as texts lead. For one thread."""

    def __init__(self, pattern: str, nfa: Nfa) -> None:
        self.pattern = pattern
        self._nfa = nfa
        self._accept = nfa.accepts[0]
        self._rows: dict[State, dict[int, State]] = {}
        self.start = self._closure({nfa.starts[0]})

    def accepts(self, state: State) -> bool:
        return self._accept in state

    def step(self, state: State, byte: int) -> State:
        """The state after one more byte; DEAD if no match can begin so."""
        row = self._rows.get(state)
        if row is None:
            if len(self._rows) >= MAX_STATES:
                self._rows.clear()
            row = self._rows[state] = {}
        after = row.get(byte)
        if after is None:
            moves = self._nfa.moves
            after = row[byte] = self._closure(
                {
                    target
                    for source in state
                    for low, high, target in moves[source]
                    if low <= byte <= high
                }
            )
        return after

    def _closure(self, states: set[int]) -> State:
        work = list(states)
        while work:
            for target in self._nfa.silent[work.pop()]:
                if target not in states:
                    states.add(target)
                    work.append(target)
        return frozenset(states)


def pattern_dfa(pattern: str) -> PatternDfa:
    """Raises GrammarError for what is no pattern, is not supported (anchors, look-arounds, back
    references), is too large or matches the empty text."""
    builder = NfaBuilder(MAX_NFA_STATES)
    add_regex(builder, pattern)
    nfa = builder.finish()
    if nfa.ahead or nfa.behind:
        raise GrammarError("look-arounds are not supported in what ends an answer")
    dfa = PatternDfa(pattern, nfa)
    if dfa.accepts(dfa.start):
        raise GrammarError("the pattern matches the empty text")
    return dfa
