"""Tables against Lark's own, where Lark has no choice to make."""

from __future__ import annotations

import pytest
from lark import Lark
from lark.parsers.lalr_analysis import Shift

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.lalr import Rule, build_tables
from tests.grammar.toy import SAMPLES, compiled, lark_spec


def lark_states(parser: Lark) -> tuple[dict, int]:
    table = parser.parser.parser._parse_table
    return table.states, next(iter(table.start_states.values()))


@pytest.mark.parametrize("name", SAMPLES)
def test_states_and_actions_are_larks(name):
    grammar = compiled(lark_spec(SAMPLES[name]))
    assert grammar.tables.conflicts == []
    parser = Lark(SAMPLES[name], parser="lalr")
    states, start = lark_states(parser)
    by_pattern = {terminal.name: terminal.pattern.to_regexp() for terminal in parser.terminals}
    own_pattern = [*grammar.tables.terminal_patterns, "$END"]
    tables = grammar.tables.parser
    paired = {start: 0}
    work = [start]
    for theirs in work:
        own = paired[theirs]
        expected = {}
        for symbol, (action, argument) in states[theirs].items():
            if symbol.islower() or (symbol.startswith(("_", "$root")) and symbol not in by_pattern):
                continue  # Rules, followed below.
            pattern = by_pattern.get(symbol, symbol)
            expected[pattern] = None if action is Shift else len(argument.expansion)
        found = {}
        for terminal, (action,) in tables.actions[own].items():
            shifts = action >= 0
            found[own_pattern[terminal]] = None if shifts else tables.rules[-1 - action][0]
            if not shifts or terminal == tables.end:
                continue
            symbol = next(
                each for each in states[theirs] if by_pattern.get(each) == own_pattern[terminal]
            )
            target = states[theirs][symbol][1]
            assert paired.setdefault(target, action) == action
            if target not in work:
                work.append(target)
        # Lark has no action of its own for the end in the state that accepts.
        found = {key: value for key, value in found.items() if key != "$END" or key in expected}
        assert found == {key: value for key, value in expected.items() if key in own_pattern}
        assert len(tables.gotos[own]) == sum(
            symbol not in by_pattern and symbol != "$END" for symbol in states[theirs]
        )


def test_conflicts_keep_every_action():
    # 0: "+"  1: "a"  2: the end  3: e
    rules = [Rule(3, (3, 0, 3)), Rule(3, (1,))]
    tables, conflicts = build_tables(rules, 3, 2, 100)
    assert [(each.terminal, each.shift) for each in conflicts] == [(0, True)]
    assert any(len(actions) == 2 for row in tables.actions for actions in row.values())


def test_a_rule_of_higher_priority_wins():
    rules = [Rule(2, (3,)), Rule(2, (4,)), Rule(3, (0,), 2), Rule(4, (0,), 1)]
    _, conflicts = build_tables(rules, 2, 1, 100)
    assert conflicts == []
    even = [rule._replace(priority=0) for rule in rules]
    _, conflicts = build_tables(even, 2, 1, 100)
    assert len(conflicts) == 1
    assert not conflicts[0].shift


def test_too_many_states_are_refused():
    rules = [Rule(2, (0,) * 50)]
    with pytest.raises(GrammarError, match="more than 20 states"):
        build_tables(rules, 2, 1, 20)
