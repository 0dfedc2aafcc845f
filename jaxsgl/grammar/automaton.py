"""Lexer and parser together: which texts are prefixes of texts of the grammar."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from jaxsgl.grammar.endings import Endings
from jaxsgl.grammar.lexer import DEAD, WHOLE_TAIL, Ending, Lexer
from jaxsgl.grammar.limits import GrammarLimits
from jaxsgl.grammar.parser import Branch, Parser, Stack, same_states
from jaxsgl.grammar.tables import GrammarTables


class Automaton:
    """Reads bytes along all branches at once. Its lexer grows; the rest never changes."""

    def __init__(self, tables: GrammarTables, limits: GrammarLimits) -> None:
        self.tables = tables
        self.lexer = Lexer(tables.lexer, limits.max_lexer_states)
        self.parser = Parser(tables.parser, tables.ignored)
        self.ignored = frozenset(tables.ignored)
        self._max_branches = limits.max_branches
        self._begin: list[int | None] = [None] * len(tables.parser.actions)

    @cached_property
    def endings(self) -> Endings:
        return Endings(self.tables.lexer.nfa)

    def start(self) -> list[Branch]:
        """The branches before the first byte."""
        stack = self.parser.start
        return [(stack, self.begin(stack[0]), b"")]

    def begin(self, parser_state: int) -> int:
        """The lexer's state before a lexeme that the parser wants there; DEAD if it wants none."""
        state = self._begin[parser_state]
        if state is None:
            context = self.parser.contexts[parser_state]
            state = self._begin[parser_state] = self.lexer.begin(context)
        return state

    def read(self, branches: list[Branch], data: bytes) -> list[Branch]:
        """Return the branches after `data`; none if no text of the grammar begins so.

        A branch may come back whose lexeme the parser cannot take: see `is_viable`.
        """
        if len(branches) != 1:
            return [after for branch in branches for after in self.read([branch], data)]
        stack, state, tail = branches[0]
        if state == DEAD:
            return [] if data else branches
        lexer = self.lexer
        rows, class_of, is_late = lexer.rows, lexer.class_of, lexer.is_late
        forks = not lexer.first_match
        for at, byte in enumerate(data):
            following = (rows[state] or lexer.row(state))[class_of[byte]]
            if forks and lexer.labels[state]:
                branches = self._fork(stack, state, following, byte)
                if len(branches) != 1:
                    return self.read(branches, data[at + 1 :]) if branches else []
                stack, state, tail = branches[0]
                continue
            if following < 0:
                if following == DEAD:
                    return []
                ending = lexer.endings[-2 - following]
                again = last_bytes(tail, ending.back) if ending.back else b""
                stacks, _ = self.after(stack, ending)
                if again or len(stacks) != 1:
                    if again is None:
                        return []
                    branches = [(each, self.begin(each[0]), b"") for each in stacks]
                    return self.read(branches, again + data[at:]) if branches else []
                stack = stacks[0]
                state = self.begin(stack[0])
                if state == DEAD:
                    return []
                following = (rows[state] or lexer.row(state))[class_of[byte]]
                if following < 0:
                    return []
            tail = self.next_tail(tail, byte, following) if is_late[following] else b""
            state = following
        return [(stack, state, tail)]

    def keep_viable(self, branches: list[Branch]) -> list[Branch]:
        """Return branches that may go on, each once, the shallowest if there are too many."""
        kept: list[Branch] = []
        for branch in sorted(branches, key=lambda each: each[0][2]):
            known = any(
                branch[1:] == other[1:] and same_states(branch[0], other[0]) for other in kept
            )
            if not known and self.is_viable(branch):
                kept.append(branch)
                if len(kept) == self._max_branches:
                    break
        return kept

    def is_viable(self, branch: Branch) -> bool:
        """Whether the parser can take a lexeme that what was read of it may become."""
        stack, state, _ = branch
        if state == DEAD:
            return False
        return self.fits(stack, self.lexer.lives[state])[0]

    def fits(self, stack: Stack, live_id: int) -> tuple[bool, int]:
        """Whether the parser can take any terminal of a live set; also the least depth read."""
        low = stack[2]
        for terminal in self.lexer.live_sets[live_id]:
            if terminal in self.ignored:
                return True, low
            stacks, depth = self.parser.feed(stack, terminal)
            low = min(low, depth)
            if stacks:
                return True, low
        return False, low

    def after(self, stack: Stack, ending: Ending) -> tuple[Sequence[Stack], int]:
        """Return the stacks after a lexeme, and the least depth read."""
        if len(ending.terminals) == 1 and ending.terminals[0] not in self.ignored:
            return self.parser.feed(stack, ending.terminals[0])
        low = stack[2]
        stacks: list[Stack] = []
        for terminal in ending.terminals:
            if terminal in self.ignored:
                stacks.append(stack)
                continue
            fed, depth = self.parser.feed(stack, terminal)
            stacks += fed
            low = min(low, depth)
        return stacks, low

    def can_end(self, branch: Branch) -> tuple[bool, int]:
        """Whether the text may end here; also the least depth of the stack that was read."""
        stack, state, tail = branch
        low = stack[2]
        if state == DEAD or not self.lexer.has_started(state):
            ends, low = self.parser.feed(stack, self.parser.end)
            if ends:
                return True, low
        ending = None if state == DEAD else self.lexer.at_end[state]
        if ending is None:
            return False, low
        stacks, depth = self.after(stack, ending)
        low = min(low, depth)
        rest = last_bytes(tail, ending.back)
        if rest is None:
            return False, low
        for stack in stacks:
            for branch in self.read([(stack, self.begin(stack[0]), b"")], rest):
                # What is read again may reach anything; `low` says so.
                ends, depth = self.can_end(branch)
                low = min(low, depth, 0 if rest else low)
                if ends:
                    return True, low
        return False, low

    def next_tail(self, tail: bytes, byte: int, state: int) -> bytes:
        """The tail after `byte` has led to `state`."""
        if not self.lexer.is_late[state]:
            return b""
        tail += bytes((byte,))
        back = self.lexer.backs[state]
        return tail[-back:] if back else tail

    def _fork(self, stack: Stack, state: int, following: int, byte: int) -> list[Branch]:
        """Go on with the lexeme, and also end it before `byte`."""
        lexer = self.lexer
        branches: list[Branch] = [] if following < 0 else [(stack, following, b"")]
        for after in self.after(stack, Ending(lexer.labels[state]))[0]:
            begin = self.begin(after[0])
            if begin != DEAD:
                following = lexer.row(begin)[lexer.class_of[byte]]
                if following >= 0:
                    branches.append((after, following, b""))
        return branches


def last_bytes(tail: bytes, back: int) -> bytes | None:
    """The last `back` bytes of the tail; None if it does not hold them."""
    if back == WHOLE_TAIL:
        return tail
    if back > len(tail):
        return None
    return tail[len(tail) - back :]
