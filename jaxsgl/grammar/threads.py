"""The threads of a simulated automaton: NFA states, with the look-aheads that they are subject to.

A thread is a number. The first are the states of the NFA themselves; others are made as they are
met, for states reached while look-aheads are under way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.nfa import Nfa


class Obligation(NamedTuple):
    """A look-ahead under way."""

    states: frozenset[int]
    end: int
    negated: bool


class Thread(NamedTuple):
    """An NFA state with look-aheads still to be settled.

    In an accepting state they concern the bytes after the match, `back` of which have passed.
    """

    state: int
    obligations: frozenset[Obligation]
    back: int = 0


class Threads:
    """Moves threads by bytes. Bytes that no state tells apart are of one class.

    `byte_classes`: [256] -> class, also as the list `class_of`. `first_bytes`: [class] -> a byte.
    `accepted`: NFA state -> the terminal that it accepts.
    """

    def __init__(self, nfa: Nfa, first_match: bool) -> None:
        self.nfa = nfa
        self.accepted = {state: terminal for terminal, state in enumerate(nfa.accepts)}
        self.num_plain = len(nfa.silent)
        self._first_match = first_match
        self._threads: list[Thread] = []
        self._ids: dict[Thread, int] = {}
        self._closures: dict[tuple[int, int], tuple[int, ...]] = {}
        self._class_moves: dict[int, list[tuple[int, int]]] = {}
        self._looking = self._states_that_look()
        self.byte_classes, self.first_bytes = self._classify_bytes()
        self.class_of: list[int] = self.byte_classes.tolist()

    def looks(self, targets: list[int]) -> bool:
        """Whether it matters to any of `targets` which byte has led there."""
        return not self._looking.isdisjoint(targets) or max(targets) >= self.num_plain

    def thread(self, each: int) -> Thread:
        if each < self.num_plain:
            return Thread(each, frozenset())
        return self._threads[each - self.num_plain]

    def close(self, seed: int, previous_byte: int, seen: set[int]) -> tuple[int, ...]:
        """Return threads reached from thread `seed` without a byte, by preference, less those in
        `seen`, to which they are added."""
        if seed < self.num_plain and seed not in self._looking:
            previous_byte = -1
        closure = self._closures.get((seed, previous_byte))
        if closure is None:
            closure = self._closures[seed, previous_byte] = self._walk_silent(seed, previous_byte)
        fresh = tuple(each for each in closure if each not in seen)
        seen.update(fresh)
        return fresh

    def close_all(self, states: set[int]) -> frozenset[int]:
        """Plain closure, without preference; keeps the silent states that mark an end."""
        reached = set(states)
        work = list(states)
        while work:
            for target in self.nfa.silent[work.pop()]:
                if target not in reached:
                    reached.add(target)
                    work.append(target)
        return frozenset(reached)

    def moves_of(self, state: int) -> list[tuple[int, int]]:
        """[(byte class, target)]"""
        moves = self._class_moves.get(state)
        if moves is None:
            class_of = self.class_of
            moves = self._class_moves[state] = [
                (class_, target)
                for low, high, target in self.nfa.moves[state]
                for class_ in range(class_of[low], class_of[high] + 1)
            ]
        return moves

    def settled(self, seed: int) -> tuple[int, int] | None:
        """(terminal, back) if the thread is a match whose look-aheads have come true."""
        if seed < self.num_plain:
            return None
        thread = self._threads[seed - self.num_plain]
        if thread.back and not thread.obligations:
            return self.nfa.terminals[thread.state], thread.back
        return None

    def move_obliged(self, each: int, seeds: list[list[int]]) -> None:
        """Move a thread with look-aheads by every byte class: add to `seeds[class]`."""
        thread = self.thread(each)
        for class_, byte in enumerate(self.first_bytes):
            obligations = self._moved_obligations(thread.obligations, byte)
            if obligations is None:
                continue
            if thread.state in self.accepted:
                if not self._first_match:
                    continue  # Nothing follows a lexeme that looks beyond its end in this mode.
                moved = Thread(thread.state, obligations, thread.back + 1)
                seeds[class_].append(self._number(moved))
                continue
            for low, high, target in self.nfa.moves[thread.state]:
                if low <= byte <= high:
                    seeds[class_].append(self._number(Thread(target, obligations)))

    def _states_that_look(self) -> frozenset[int]:
        """Plain states from which a look-behind or look-ahead is reached without a byte."""
        nfa = self.nfa
        looking = set(nfa.behind) | set(nfa.ahead)
        if not looking:
            return frozenset()
        sources: dict[int, list[int]] = {}
        for source, targets in enumerate(nfa.silent):
            for target in targets:
                sources.setdefault(target, []).append(source)
        work = list(looking)
        while work:
            for source in sources.get(work.pop(), ()):
                if source not in looking:
                    looking.add(source)
                    work.append(source)
        return frozenset(looking)

    def _classify_bytes(self) -> tuple[NDArray[np.intp], list[int]]:
        """Split the bytes into classes that no state tells apart; also one byte of each."""
        cuts = {0}
        for moves in self.nfa.moves:
            for low, high, _ in moves:
                cuts |= {low, high + 1}
        for look in self.nfa.behind.values():
            for byte in look.bytes_:
                cuts |= {byte, byte + 1}
        cuts -= {256}
        starts = np.zeros(256, dtype=np.intp)
        starts[sorted(cuts)] = 1
        return np.cumsum(starts) - 1, sorted(cuts)

    def _number(self, thread: Thread) -> int:
        if not thread.obligations and not thread.back:
            return thread.state
        found = self._ids.get(thread)
        if found is None:
            found = self._ids[thread] = self.num_plain + len(self._threads)
            self._threads.append(thread)
        return found

    def _walk_silent(self, seed: int, previous_byte: int) -> tuple[int, ...]:
        nfa = self.nfa
        reached: list[int] = []
        visited: set[Thread] = set()
        work = [self.thread(seed)]
        while work:
            thread = self._look(work.pop(), previous_byte)
            if thread is None or thread in visited:
                continue
            visited.add(thread)
            if nfa.moves[thread.state] or thread.state in self.accepted:
                reached.append(self._number(thread))
            targets = reversed(nfa.silent[thread.state])
            work.extend(Thread(target, thread.obligations) for target in targets)
        return tuple(reached)

    def _look(self, thread: Thread, previous_byte: int) -> Thread | None:
        """Apply what guards a state: None if it may not be entered, else with obligations."""
        behind = self.nfa.behind.get(thread.state)
        if behind is not None:
            if previous_byte < 0:
                raise GrammarError("a look-behind at the beginning of a terminal is not supported")
            if (previous_byte in behind.bytes_) == behind.negated:
                return None
        ahead = self.nfa.ahead.get(thread.state)
        if ahead is None:
            return thread
        states = self.close_all({ahead.start})
        if ahead.end in states:
            return None if ahead.negated else thread
        added = Obligation(states, ahead.end, ahead.negated)
        return thread._replace(obligations=thread.obligations | {added})

    def _moved_obligations(
        self, obligations: frozenset[Obligation], byte: int
    ) -> frozenset[Obligation] | None:
        """None if one is broken; those that have come true are left out."""
        kept: set[Obligation] = set()
        for obligation in obligations:
            states = self.close_all(
                {
                    target
                    for state in obligation.states
                    for low, high, target in self.nfa.moves[state]
                    if low <= byte <= high
                }
            )
            if obligation.end in states:
                if obligation.negated:
                    return None
            elif states:
                kept.add(obligation._replace(states=states))
            elif not obligation.negated:
                return None
        return frozenset(kept)
