"""The LALR parser run on stacks that are never changed, so that they can be shared and kept."""

from __future__ import annotations

from jaxsgl.grammar.lalr import ParserTables

MAX_REDUCTIONS = 100
"""Of one terminal where the grammar is ambiguous. More are only met in grammars that derive the
same text without end; what is left out makes the mask stricter, never laxer."""


type Stack = tuple[int, Stack | None, int]
"""(parser state, the stack below, depth). Plain tuples: thousands are made per step."""

type Branch = tuple[Stack, int, bytes]
"""One way to read a text so far: (stack, lexer state, tail). The tail is what was read since the
last match in the lexeme, where it may turn out that the lexeme has ended there."""


class Parser:
    """Guarantees that it changes nothing, so one serves all matchers of a grammar."""

    def __init__(self, tables: ParserTables, ignored: list[int]) -> None:
        self.end = tables.end
        self.start: Stack = (0, None, 0)
        self._actions: list[dict[int, int | tuple[int, ...]]] = [
            {
                terminal: actions[0] if len(actions) == 1 else tuple(actions)
                for terminal, actions in row.items()
            }
            for row in tables.actions
        ]
        self._gotos = tables.gotos
        self._rules = tables.rules
        always = frozenset(ignored)
        self.contexts = [always | (row.keys() - {self.end}) for row in tables.actions]
        """[state]: the terminals that the lexer looks for there."""

    def feed(self, stack: Stack, terminal: int) -> tuple[tuple[Stack, ...], int]:
        """Return the stacks after `terminal` (none if it does not fit, several if the grammar is
        ambiguous here), and the least depth of which a state was read."""
        actions = self._actions
        low = stack[2]
        while True:
            action = actions[stack[0]].get(terminal)
            if action is None:
                return (), low
            if isinstance(action, tuple):
                return self._feed_all(stack, terminal, low)
            if action >= 0:
                return ((action, stack, stack[2] + 1),), low
            stack = self._reduced(stack, -1 - action)
            below = stack[2] - 1
            if below < low:
                low = below

    def _reduced(self, stack: Stack, rule: int) -> Stack:
        length, origin = self._rules[rule]
        base: Stack = stack
        for _ in range(length):
            base = base[1]  # pyright: ignore[reportAssignmentType]  # Rules fit the stack.
        return self._gotos[base[0]][origin], base, base[2] + 1

    def _feed_all(self, stack: Stack, terminal: int, low: int) -> tuple[tuple[Stack, ...], int]:
        """Follow every action, breadth first."""
        work = [stack]
        seen = {(stack[0], id(stack[1]))}
        shifted: list[Stack] = []
        for stack in work:
            action = self._actions[stack[0]].get(terminal, ())
            for each in (action,) if isinstance(action, int) else action:
                if each >= 0:
                    shifted.append((each, stack, stack[2] + 1))
                    continue
                reduced = self._reduced(stack, -1 - each)
                low = min(low, reduced[2] - 1)
                key = (reduced[0], id(reduced[1]))
                if key not in seen and len(work) < MAX_REDUCTIONS:
                    seen.add(key)
                    work.append(reduced)
        return tuple(shifted), low


def same_states(one: Stack, other: Stack) -> bool:
    """Whether two stacks hold equal states."""
    if one[2] != other[2]:
        return False
    left: Stack | None = one
    right: Stack | None = other
    while left is not right:
        if left is None or right is None or left[0] != right[0]:
            return False
        left, right = left[1], right[1]
    return True
