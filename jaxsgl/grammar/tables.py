"""A compiled grammar as plain data: what a worker process sends back."""

from __future__ import annotations

import itertools

import msgspec

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.lalr import Conflict, ParserTables, Rule, build_tables
from jaxsgl.grammar.lexer import LexerTables
from jaxsgl.grammar.limits import GrammarLimits
from jaxsgl.grammar.nfa import matches_nothing


class GrammarTables(msgspec.Struct):
    """Everything that masks are made from, except the vocabulary."""

    lexer: LexerTables
    parser: ParserTables
    terminal_names: list[str]
    terminal_patterns: list[str]
    """What each terminal matches, as written; equal patterns mean equal automata."""
    ignored: list[int]
    conflicts: list[str]
    """What an LALR(1) parser could not decide; both ways are followed."""
    warnings: list[str]
    largest_part: bytes = b""
    """See `CompiledGrammar`."""


def encode_tables(tables: GrammarTables) -> bytes:
    return msgspec.msgpack.encode(tables)


def decode_tables(data: bytes) -> GrammarTables:
    return msgspec.msgpack.decode(data, type=GrammarTables)


def assemble(
    lexer: LexerTables,
    rules: list[Rule],
    rule_names: list[str],
    start: int,
    *,
    terminal_names: list[str],
    terminal_patterns: list[str],
    ignored: list[int],
    warnings: list[str],
    limits: GrammarLimits,
) -> GrammarTables:
    """Build the parser and put everything together.

    `rules` number terminals as `lexer` does, then the end of the text, then nonterminals;
    `rule_names` are for messages. Raises GrammarError if no text at all can be made.
    """
    num_terminals = len(terminal_names)
    finite = _finite(rules, num_terminals, lexer)
    if start in finite:
        kept = [all(symbol in finite for symbol in rule.symbols) for rule in rules]
        rules = list(itertools.compress(rules, kept))
        rule_names = list(itertools.compress(rule_names, kept))
    else:
        warnings = [*warnings, "no text of this grammar ever ends"]
    parser, conflicts = build_tables(rules, start, num_terminals, limits.max_parser_states)
    if _is_empty(parser, lexer, ignored):
        raise GrammarError("the grammar matches no text at all")
    names = ["the root", *rule_names]
    return GrammarTables(
        lexer=lexer,
        parser=parser,
        terminal_names=terminal_names,
        terminal_patterns=terminal_patterns,
        ignored=ignored,
        conflicts=[_described(each, names, [*terminal_names, "the end"]) for each in conflicts],
        warnings=warnings,
    )


def _finite(rules: list[Rule], num_terminals: int, lexer: LexerTables) -> set[int]:
    """Symbols of which a finite text can be made."""
    finite = {each for each in range(num_terminals) if not matches_nothing(lexer.nfa, each)}
    waiting: dict[int, list[int]] = {}
    missing = [len(rule.symbols) for rule in rules]
    for index, rule in enumerate(rules):
        for symbol in rule.symbols:
            waiting.setdefault(symbol, []).append(index)
    work = [*finite, *(rule.origin for rule in rules if not rule.symbols)]
    seen = set(work)
    for symbol in work:
        finite.add(symbol)
        for index in waiting.get(symbol, ()):
            missing[index] -= 1
            origin = rules[index].origin
            if not missing[index] and origin not in seen:
                seen.add(origin)
                work.append(origin)
    return finite


def _is_empty(parser: ParserTables, lexer: LexerTables, ignored: list[int]) -> bool:
    """Whether nothing can be read at first and the text cannot end either."""
    if parser.end in parser.actions[0]:
        return False
    first = [terminal for terminal in parser.actions[0] if terminal not in ignored]
    return all(matches_nothing(lexer.nfa, terminal) for terminal in first)


def _described(conflict: Conflict, rule_names: list[str], terminal_names: list[str]) -> str:
    ways = [f"reduce {rule_names[rule]}" for rule in conflict.rules]
    if conflict.shift:
        ways.insert(0, "shift")
    return f"on {terminal_names[conflict.terminal]}: {' or '.join(ways)}"
