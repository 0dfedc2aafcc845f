"""The shortest texts that lead from within a terminal to its end."""

from __future__ import annotations

from collections.abc import Iterable

from jaxsgl.grammar.nfa import Nfa

MAX_ENDING_LEN = 128
MAX_ENDINGS = 500
"""Of longer and of more texts there are none."""


class Endings:
    """Of one automaton. What look-arounds ask for is left out of account."""

    def __init__(self, nfa: Nfa) -> None:
        num_states = len(nfa.silent)
        silent_sources: list[list[int]] = [[] for _ in range(num_states)]
        sources: list[list[tuple[int, int]]] = [[] for _ in range(num_states)]
        for source in range(num_states):
            for target in nfa.silent[source]:
                silent_sources[target].append(source)
            for low, high, target in sorted(nfa.moves[source], key=_is_control):
                sources[target].append((source, min(max(low, ord(" ")), high)))
        self._next: list[tuple[int, int] | None] = [None] * num_states
        """[state]: (a byte, the state after it) of a shortest way; None where it has ended."""
        self._lens = [-1] * num_states
        """[state]: bytes of a shortest way, -1 if there is none."""
        level = self._close(list(nfa.accepts), silent_sources, 0)
        length = 0
        while level:
            length += 1
            reached: list[int] = []
            for target in level:
                for source, byte in sources[target]:
                    if self._lens[source] < 0:
                        self._lens[source] = length
                        self._next[source] = (byte, target)
                        reached.append(source)
            level = self._close(reached, silent_sources, length)

    def of(self, states: Iterable[int]) -> list[bytes]:
        """The distinct shortest ways from each of `states`, the shortest first."""
        found: dict[bytes, None] = {}
        for state in sorted(states, key=self._lens.__getitem__):
            if self._lens[state] > MAX_ENDING_LEN or len(found) == MAX_ENDINGS:
                break
            if self._lens[state] > 0:
                found[self._way(state)] = None
        return list(found)

    def all(self) -> list[bytes]:
        return self.of(range(len(self._lens)))

    def _close(self, level: list[int], silent_sources: list[list[int]], length: int) -> list[int]:
        """Add to the states so far from the end those from which they are reached silently."""
        for target in level:
            self._lens[target] = length
        for target in level:
            for source in silent_sources[target]:
                if self._lens[source] < 0:
                    self._lens[source] = length
                    self._next[source] = self._next[target]
                    level.append(source)
        return level

    def _way(self, state: int) -> bytes:
        way = bytearray()
        step = self._next[state]
        while step is not None:
            way.append(step[0])
            step = self._next[step[1]]
        return bytes(way)


def _is_control(move: tuple[int, int, int]) -> bool:
    return move[1] < ord(" ")
