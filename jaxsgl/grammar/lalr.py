"""LALR(1) tables that keep every action where a grammar has conflicts.

Look-aheads after DeRemer and Pennello, "Efficient Computation of LALR(1) Look-Ahead Sets" (1982).
Lark's own tables are not enough: they resolve shift/reduce conflicts silently, as shifts, and do
not exist for grammars with reduce/reduce conflicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from jaxsgl.grammar.errors import GrammarError


class Rule(NamedTuple):
    """`origin` becomes `symbols`. Terminals are numbered from 0; then comes the end of the text,
    then nonterminals."""

    origin: int
    symbols: tuple[int, ...]
    priority: int = 0


class Conflict(NamedTuple):
    """More than one action in `state` on `terminal`: reduce by any of `rules`, or shift."""

    state: int
    terminal: int
    rules: tuple[int, ...]
    shift: bool


class ParserTables(msgspec.Struct):
    """State 0 is the first."""

    end: int
    """The terminal that stands for the end of the text."""
    actions: list[dict[int, list[int]]]
    """[state]: terminal -> actions. n: shift and go to state n. -1 - n: reduce by rule n."""
    gotos: list[dict[int, int]]
    """[state]: nonterminal -> state"""
    rules: list[tuple[int, int]]
    """[rule]: (number of symbols, origin)"""


def build_tables(
    rules: list[Rule], start: int, num_terminals: int, max_states: int
) -> tuple[ParserTables, list[Conflict]]:
    """Return tables for texts of `start`, and where they are not deterministic.

    Of several rules to reduce by, one of strictly highest priority wins, as in Lark.
    """
    return _Builder(rules, start, num_terminals, max_states).build()


class _Builder:
    def __init__(self, rules: list[Rule], start: int, num_terminals: int, max_states: int) -> None:
        self._end = num_terminals
        root = 1 + max([start, num_terminals, *(rule.origin for rule in rules)])
        self._rules = [Rule(root, (start, self._end)), *rules]
        self._max_states = max_states
        # An item is a rule and a place in it; items of one rule are numbered one after the other.
        self._first_item: list[int] = []
        self._next_symbol: list[int] = []
        self._rule_of_item: list[int] = []
        for index, rule in enumerate(self._rules):
            self._first_item.append(len(self._next_symbol))
            self._next_symbol += [*rule.symbols, -1]
            self._rule_of_item += [index] * (len(rule.symbols) + 1)
        self._rules_of: dict[int, list[int]] = {}
        for index, rule in enumerate(self._rules):
            self._rules_of.setdefault(rule.origin, []).append(index)
        self._nullable = self._find_nullable()
        self._closures: dict[int, frozenset[int]] = {}
        self._kernels: list[tuple[int, ...]] = []
        self._transitions: list[dict[int, int]] = []

    def build(self) -> tuple[ParserTables, list[Conflict]]:
        self._make_states()
        lookaheads = self._lookaheads()
        actions: list[dict[int, list[int]]] = []
        gotos: list[dict[int, int]] = []
        conflicts: list[Conflict] = []
        for state, transitions in enumerate(self._transitions):
            row = {sym: [to] for sym, to in transitions.items() if sym <= self._end}
            gotos.append({sym: to for sym, to in transitions.items() if sym > self._end})
            for terminal, rules in self._reductions(state, lookaheads).items():
                shift = terminal in row
                if shift or len(rules) > 1:
                    conflicts.append(Conflict(state, terminal, tuple(rules), shift))
                row.setdefault(terminal, []).extend(-1 - rule for rule in rules)
            actions.append(row)
        shapes = [(len(rule.symbols), rule.origin) for rule in self._rules]
        return ParserTables(self._end, actions, gotos, shapes), conflicts

    def _find_nullable(self) -> set[int]:
        nullable: set[int] = set()
        waiting: dict[int, list[int]] = {}
        missing = [len(rule.symbols) for rule in self._rules]
        work: list[int] = []
        for index, rule in enumerate(self._rules):
            for symbol in rule.symbols:
                waiting.setdefault(symbol, []).append(index)
            if not rule.symbols:
                work.append(rule.origin)
        while work:
            symbol = work.pop()
            if symbol in nullable:
                continue
            nullable.add(symbol)
            for index in waiting.get(symbol, ()):
                missing[index] -= 1
                if not missing[index]:
                    work.append(self._rules[index].origin)
        return nullable

    def _closure(self, nonterminal: int) -> frozenset[int]:
        """First items of all rules that may begin where `nonterminal` is wanted."""
        items = self._closures.get(nonterminal)
        if items is None:
            seen = {nonterminal}
            work = [nonterminal]
            found: set[int] = set()
            while work:
                for rule in self._rules_of.get(work.pop(), ()):
                    item = self._first_item[rule]
                    found.add(item)
                    symbol = self._next_symbol[item]
                    if symbol > self._end and symbol not in seen:
                        seen.add(symbol)
                        work.append(symbol)
            items = self._closures[nonterminal] = frozenset(found)
        return items

    def _make_states(self) -> None:
        first = (self._first_item[0],)
        numbers: dict[tuple[int, ...], int] = {first: 0}
        self._kernels.append(first)
        for kernel in self._kernels:
            items = set(kernel)
            for item in kernel:
                if self._next_symbol[item] > self._end:
                    items |= self._closure(self._next_symbol[item])
            moved: dict[int, list[int]] = {}
            for item in items:
                if self._next_symbol[item] >= 0:
                    moved.setdefault(self._next_symbol[item], []).append(item + 1)
            transitions: dict[int, int] = {}
            for symbol in sorted(moved):
                target = tuple(sorted(moved[symbol]))
                number = numbers.get(target)
                if number is None:
                    number = numbers[target] = len(self._kernels)
                    self._kernels.append(target)
                    if number >= self._max_states:
                        raise GrammarError(f"the parser needs more than {number} states")
                transitions[symbol] = number
            self._transitions.append(transitions)

    def _lookaheads(self) -> dict[tuple[int, int], int]:
        """(state, rule) -> terminals, as bits, on which the finished rule is reduced there."""
        numbers: dict[tuple[int, int], int] = {}
        for state, transitions in enumerate(self._transitions):
            for symbol in transitions:
                if symbol > self._end:
                    numbers[state, symbol] = len(numbers)
        direct: list[int] = []
        reads: list[list[int]] = []
        for state, symbol in numbers:
            target = self._transitions[state][symbol]
            direct.append(sum(1 << each for each in self._transitions[target] if each <= self._end))
            reads.append(
                [
                    numbers[target, each]
                    for each in self._transitions[target]
                    if each in self._nullable
                ]
            )
        includes: list[list[int]] = [[] for _ in numbers]
        lookback: dict[tuple[int, int], list[int]] = {}
        for (state, nonterminal), number in numbers.items():
            for rule, end, passed in self._spell(state, nonterminal):
                lookback.setdefault((end, rule), []).append(number)
                for transition in passed:
                    includes[numbers[transition]].append(number)
        follows = _close_over(includes, _close_over(reads, direct))
        lookaheads: dict[tuple[int, int], int] = {}
        for key, transitions in lookback.items():
            terminals = 0
            for number in transitions:
                terminals |= follows[number]
            lookaheads[key] = terminals
        return lookaheads

    def _spell(
        self, state: int, nonterminal: int
    ) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """Yield for each rule of `nonterminal`: it, the state where it ends if it begins in
        `state`, and the nonterminal transitions that only nullable symbols follow."""
        for index in self._rules_of.get(nonterminal, ()):
            symbols = self._rules[index].symbols
            path = [state]
            for symbol in symbols:
                path.append(self._transitions[path[-1]][symbol])
            passed: list[tuple[int, int]] = []
            for place in range(len(symbols) - 1, -1, -1):
                if symbols[place] > self._end:
                    passed.append((path[place], symbols[place]))
                if symbols[place] not in self._nullable:
                    break
            yield index, path[-1], passed

    def _reductions(
        self, state: int, lookaheads: dict[tuple[int, int], int]
    ) -> dict[int, list[int]]:
        """Terminal -> rules that may be reduced by."""
        items = set(self._kernels[state])
        for item in self._kernels[state]:
            if self._next_symbol[item] > self._end:
                items |= self._closure(self._next_symbol[item])
        reductions: dict[int, list[int]] = {}
        for item in sorted(items):
            if self._next_symbol[item] >= 0 or item + 1 == self._first_item_after_root:
                continue
            rule = self._rule_of_item[item]
            terminals = lookaheads.get((state, rule), 0)
            while terminals:
                lowest = terminals & -terminals
                reductions.setdefault(lowest.bit_length() - 1, []).append(rule)
                terminals ^= lowest
        return {terminal: self._preferred(rules) for terminal, rules in reductions.items()}

    @property
    def _first_item_after_root(self) -> int:
        return len(self._rules[0].symbols) + 1

    def _preferred(self, rules: list[int]) -> list[int]:
        if len(rules) == 1:
            return rules
        ranked = sorted(rules, key=lambda rule: -self._rules[rule].priority)
        best, second = (self._rules[rule].priority for rule in ranked[:2])
        return ranked[:1] if best > second else rules


def _close_over(relation: list[list[int]], sets: list[int]) -> list[int]:
    """For each node, the union of the sets of all nodes that it reaches (the digraph algorithm,
    with a stack of its own instead of recursion)."""
    result = list(sets)
    depth = [0] * len(sets)
    done = len(sets) + 1
    for root in range(len(sets)):
        if depth[root]:
            continue
        component = [root]
        depth[root] = 1
        calls: list[tuple[int, Iterator[int], int]] = [(root, iter(relation[root]), 1)]
        while calls:
            node, rest, own_depth = calls[-1]
            for child in rest:
                if not depth[child]:
                    component.append(child)
                    depth[child] = len(component)
                    calls.append((child, iter(relation[child]), len(component)))
                    break
                depth[node] = min(depth[node], depth[child])
                result[node] |= result[child]
            else:
                calls.pop()
                if depth[node] == own_depth:
                    while True:
                        member = component.pop()
                        depth[member] = done
                        result[member] = result[node]
                        if member == node:
                            break
                if calls:
                    parent = calls[-1][0]
                    depth[parent] = min(depth[parent], depth[node])
                    result[parent] |= result[node]
    return result
