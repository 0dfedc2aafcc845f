"""The terminals of a grammar as one byte automaton, determinised as far as texts lead.

Two ways to find the lexemes of a text:

- `first_match` is Lark's contextual lexer: of the terminals that the parser can take here, in
  Lark's order, the first that matches wins, with the length that Python's `re` gives it. As in
  Cox's "Regular Expression Matching: the Virtual Machine Approach" (2009), a state is a list of
  threads by preference, and a thread that matches removes all after it.
- `every_match` lets a lexeme end wherever some terminal matches, and follows all of these ways.
"""

from __future__ import annotations

import threading
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.nfa import Nfa
from jaxsgl.grammar.threads import Threads

LexMode = Literal["first_match", "every_match"]

DEAD = -1
WHOLE_TAIL = -1
REFUSED = 1 << 30
"""A terminal that no parser takes."""


class LexerTables(msgspec.Struct):
    """What a `Lexer` needs, as plain data."""

    mode: LexMode
    nfa: Nfa
    order: list[int]
    """Terminals by preference, first the one that wins."""
    keywords: dict[int, list[int]]
    """Terminal -> literal terminals that replace it where they match the same text, where the
    parser can take both."""
    embedded: dict[int, list[int]]
    """Terminal -> those of its keywords that are never looked for on their own beside it."""
    ignored: list[int]
    """Terminals that are skipped. As a keyword in another terminal's place they are not: Lark hands
    such a lexeme to the parser, which cannot take it."""


class Ending(NamedTuple):
    """A lexeme that has ended: any of `terminals`, `back` bytes ago (not counting a byte that did
    not fit). WHOLE_TAIL: where the last match was, all bytes since then being the matcher's
    tail."""

    terminals: tuple[int, ...]
    back: int = 0


class _StateKey(NamedTuple):
    threads: tuple[int, ...]
    keywords: frozenset[int]
    """NFA states of keywords that run beside the terminals that they may replace."""
    last_match: int
    """Terminal of the latest match in this lexeme if it lies behind, else -1."""
    back: int
    """Bytes since a match that only the latest byte has settled, else 0."""
    started: bool
    """Whether a byte of the lexeme has been read."""


_START_KEY = _StateKey((), frozenset(), -1, 0, False)


class Lexer:
    """A DFA whose states are numbered as they are met. One thread at a time makes it grow; what is
    known is read without waiting for that.

    Lists indexed by state:
    `rows`: [byte class] -> next state, DEAD, or -2 - index into `endings`: the byte did not fit and
    a lexeme ended before it. None until `row` made it.
    `labels`: terminals of a lexeme that may end after the bytes read so far.
    `at_end`: how the text may end here, or None.
    `lives`: index into `live_sets`, the terminals that the bytes read so far may still become.
    `is_late`: whether a matcher must keep the bytes since the last match.
    `backs`: bytes since a match that only the latest byte has settled, else 0.
    `label_codes`: in `every_match` mode the row entry that stands for `labels`, or DEAD.
    """

    def __init__(self, tables: LexerTables, max_states: int) -> None:
        self.tables = tables
        self._growing = threading.RLock()
        self.first_match = tables.mode == "first_match"
        self._nfa = tables.nfa
        self._ignored = frozenset(tables.ignored)
        self._max_states = max_states
        self._threads = Threads(tables.nfa, self.first_match)
        self._rank = {terminal: rank for rank, terminal in enumerate(tables.order)}
        self.byte_classes, self.class_of = self._threads.byte_classes, self._threads.class_of
        self._ids: dict[_StateKey, int] = {}
        self._keys: list[_StateKey] = []
        self._begin: dict[frozenset[int], int] = {}
        self._leading_on: set[int] = set()
        self._leading_nowhere: set[int] = set()
        self._unchecked_rows: dict[int, list[int]] = {}
        self.rows: list[list[int] | None] = []
        self.labels: list[tuple[int, ...]] = []
        self.at_end: list[Ending | None] = []
        self.lives: list[int] = []
        self.is_late: list[bool] = []
        self.backs: list[int] = []
        self.label_codes: list[int] = []
        self.endings: list[Ending] = []
        self._ending_codes: dict[Ending, int] = {}
        self.live_sets: list[tuple[int, ...]] = []
        self._live_ids: dict[tuple[int, ...], int] = {}

    @property
    def byte_groups(self) -> list[tuple[int, int]]:
        """(a byte, how many bytes no state tells from it), for all of them."""
        sizes = np.bincount(self.byte_classes).tolist()
        return list(zip(self._threads.first_bytes, sizes, strict=True))

    @property
    def num_states(self) -> int:
        return len(self._keys)

    def begin(self, context: frozenset[int]) -> int:
        """Return the state before the first byte of a lexeme that is one of `context`; DEAD if
        there is none."""
        state = self._begin.get(context)
        if state is None:
            with self._growing:
                state = self._begin.get(context)
                if state is None:
                    state = self._begin[context] = self._make_begin(context)
        return state

    def has_started(self, state: int) -> bool:
        """Whether a byte of the lexeme has been read."""
        return self._keys[state].started

    def nfa_states(self, state: int) -> list[int]:
        """Those that the threads of a state are in."""
        return [self._threads.thread(each).state for each in self._keys[state].threads]

    def row(self, state: int) -> list[int]:
        row = self.rows[state]
        if row is None:
            with self._growing:
                row = self.rows[state]
                if row is None:
                    row = self.rows[state] = self._checked_row(state)
        return row

    def live_id(self, live: tuple[int, ...]) -> int:
        """Index of a sorted tuple of terminals in `live_sets`."""
        found = self._live_ids.get(live)
        if found is None:
            with self._growing:
                found = self._live_ids.get(live)
                if found is None:
                    found = len(self.live_sets)
                    self.live_sets.append(live)
                    self._live_ids[live] = found
        return found

    def own_threads(self, state: int) -> tuple[int, tuple[int, ...]] | None:
        """Return a terminal and its threads counted from its start, if the state is of no other
        terminal and its future depends on nothing else; None otherwise.

        States of two lexers with equal patterns and equal such threads have equal futures.
        """
        key = self._keys[state]
        if key.keywords or key.last_match >= 0 or key.back or not key.threads:
            return None
        if max(key.threads) >= self._threads.num_plain:
            return None
        terminals = self._nfa.terminals
        terminal = terminals[key.threads[0]]
        if any(terminals[each] != terminal for each in key.threads):
            return None
        start = self._nfa.starts[terminal]
        return terminal, tuple(each - start for each in key.threads)

    def _checked_row(self, state: int) -> list[int]:
        if self.first_match or not self._nfa.ahead:
            return self._make_row(state)
        row = self._unchecked_row(state)
        return [each if each < 0 or self._leads_on(each) else DEAD for each in row]

    def _leads_on(self, state: int) -> bool:
        """Whether the lexeme can be completed from a state: look-aheads may contradict what is
        left to match. Searches breadth first for a state where it can end."""
        if state in self._leading_nowhere:
            return False
        seen = {state: state}
        work = [state]
        for each in work:
            if self.at_end[each] is not None or each in self._leading_on:
                while each != state:
                    self._leading_on.add(each)
                    each = seen[each]
                self._leading_on.add(state)
                return True
            for following in self._unchecked_row(each):
                known = following in seen or following in self._leading_nowhere
                if following >= 0 and not known:
                    seen[following] = each
                    work.append(following)
        self._leading_nowhere |= seen.keys()
        return False

    def _unchecked_row(self, state: int) -> list[int]:
        """The row, whether or not the lexeme can be completed from where it leads."""
        row = self._unchecked_rows.get(state)
        if row is None:
            row = self._unchecked_rows[state] = self._make_row(state)
        return row

    def _make_begin(self, context: frozenset[int]) -> int:
        tables = self.tables
        chosen = sorted(context, key=self._rank.__getitem__)
        keywords: set[int] = set()
        if self.first_match:
            embedded: set[int] = set()
            for terminal in chosen:
                replaced = context.intersection(tables.keywords.get(terminal, ()))
                keywords |= {tables.nfa.starts[each] for each in replaced}
                embedded |= context.intersection(tables.embedded.get(terminal, ()))
            chosen = [terminal for terminal in chosen if terminal not in embedded]
        threads: list[int] = []
        seen: set[int] = set()
        for terminal in chosen:
            threads += self._threads.close(tables.nfa.starts[terminal], -1, seen)
        key = _START_KEY._replace(
            threads=tuple(threads), keywords=self._threads.close_all(keywords)
        )
        state = self._intern(key)
        looks = not self.first_match and state != DEAD and self._nfa.ahead
        return DEAD if looks and not self._leads_on(state) else state

    def _intern(self, key: _StateKey) -> int:
        if not key.threads:
            return DEAD
        if not self.first_match:
            key = key._replace(threads=tuple(sorted(key.threads)))
        state = self._ids.get(key)
        if state is None:
            state = self._ids[key] = self._add_state(key)
        return state

    def _add_state(self, key: _StateKey) -> int:
        if len(self._keys) >= self._max_states:
            raise GrammarError(f"the lexer needs more than {self._max_states} states")
        labels: list[int] = []
        live: set[int] = set()
        pending = False
        at_end: Ending | None = None
        ending: list[int] = []
        for each in key.threads:
            thread = self._threads.thread(each)
            terminal = self._nfa.terminals[thread.state]
            accepted = thread.state in self._threads.accepted
            if accepted:
                terminal = self._replaced(terminal, key.keywords)
            if thread.back:
                pending = True
            else:
                live.add(terminal)
            if not accepted:
                continue
            if not thread.obligations:
                labels.append(terminal)
            if all(obligation.negated for obligation in thread.obligations):
                if thread.back == 0:
                    ending.append(terminal)
                at_end = at_end or Ending((terminal,), thread.back)
        live |= {self._nfa.terminals[each] for each in key.keywords} - self._ignored
        if not self.first_match:
            at_end = Ending(tuple(ending)) if ending else None
        elif at_end is None and key.last_match >= 0:
            at_end = Ending((key.last_match,), WHOLE_TAIL)
        self._keys.append(key)
        self.rows.append(None)
        self.labels.append(tuple(labels))
        self.at_end.append(at_end)
        self.lives.append(self.live_id(tuple(sorted(live))))
        self.is_late.append(not labels and (pending or key.last_match >= 0))
        self.backs.append(key.back)
        forks = bool(labels) and not self.first_match
        self.label_codes.append(self.ending_code(Ending(tuple(labels))) if forks else DEAD)
        return len(self._keys) - 1

    def _replaced(self, terminal: int, keywords: frozenset[int]) -> int:
        """The keyword that takes the place of a matched terminal, or the terminal itself."""
        for keyword in self.tables.keywords.get(terminal, ()) if keywords else ():
            if self._nfa.accepts[keyword] in keywords:
                return REFUSED if keyword in self._ignored else keyword
        return terminal

    def _make_row(self, state: int) -> list[int]:
        key = self._keys[state]
        seeds: list[list[int]] = [[] for _ in self._threads.first_bytes]
        for each in key.threads:
            if each < self._threads.num_plain:
                for class_, target in self._threads.moves_of(each):
                    seeds[class_].append(target)
            else:
                self._threads.move_obliged(each, seeds)
        keyword_seeds: list[list[int]] = [[] for _ in self._threads.first_bytes]
        for each in key.keywords:
            for class_, target in self._threads.moves_of(each):
                keyword_seeds[class_].append(target)
        last_match = self.labels[state][-1] if self.labels[state] else key.last_match
        ending = self._ending_of_death(state)
        cache: dict[tuple[tuple[int, ...], int, tuple[int, ...]], int] = {}
        row: list[int] = []
        for first_byte, targets, keywords in zip(
            self._threads.first_bytes, seeds, keyword_seeds, strict=True
        ):
            if not targets:
                row.append(ending)
                continue
            looked = self._threads.looks(targets)
            group = (tuple(targets), first_byte if looked else -1, tuple(keywords))
            if group not in cache:
                cache[group] = self._next(*group, last_match, ending)
            row.append(cache[group])
        return row

    def _next(
        self,
        seeds: tuple[int, ...],
        byte: int,
        keyword_seeds: tuple[int, ...],
        last_match: int,
        ending: int,
    ) -> int:
        threads: list[int] = []
        seen: set[int] = set()
        back = 0
        for seed in seeds:
            settled = self._threads.settled(seed)
            if settled is not None:
                last_match, back = settled
                break
            closure = self._threads.close(seed, byte, seen)
            cut = self._first_accept(closure) if self.first_match else None
            threads += closure if cut is None else closure[: cut + 1]
            if cut is not None:
                break
        if not threads:
            return self.ending_code(Ending((last_match,), back - 1)) if back else ending
        if not self.first_match or threads[-1] in self._threads.accepted:
            last_match = -1
        keywords = (
            self._threads.close_all(set(keyword_seeds)) if keyword_seeds else frozenset[int]()
        )
        return self._intern(
            _StateKey(tuple(threads), self._relevant(keywords, threads), last_match, back, True)
        )

    def _relevant(self, keywords: frozenset[int], threads: list[int]) -> frozenset[int]:
        """Leave out keywords whose terminal has died."""
        if not keywords:
            return keywords
        wanted: set[int] = set()
        for each in threads:
            terminal = self._nfa.terminals[self._threads.thread(each).state]
            wanted.update(self.tables.keywords.get(terminal, ()))
        return frozenset(each for each in keywords if self._nfa.terminals[each] in wanted)

    def _first_accept(self, closure: tuple[int, ...]) -> int | None:
        for index, each in enumerate(closure):
            if each in self._threads.accepted:
                return index
        return None

    def _ending_of_death(self, state: int) -> int:
        """The code of what has matched when a byte fits no thread."""
        if not self.first_match:
            return DEAD
        if self.labels[state]:
            return self.ending_code(Ending(self.labels[state]))
        last_match = self._keys[state].last_match
        return DEAD if last_match < 0 else self.ending_code(Ending((last_match,), WHOLE_TAIL))

    def ending_code(self, ending: Ending) -> int:
        """The row entry that stands for `ending`."""
        code = self._ending_codes.get(ending)
        if code is None:
            code = self._ending_codes[ending] = -2 - len(self.endings)
            self.endings.append(ending)
        return code
