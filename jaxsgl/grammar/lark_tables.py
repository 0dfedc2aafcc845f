"""Grammars in Lark's language to tables, with the choices that Lark's contextual lexer makes."""

from __future__ import annotations

import re

from lark.lexer import PatternRE, PatternStr, TerminalDef

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.lalr import Rule
from jaxsgl.grammar.lark_source import LarkGrammar, line_of, read_grammar
from jaxsgl.grammar.lexer import LexerTables, LexMode
from jaxsgl.grammar.limits import GrammarLimits
from jaxsgl.grammar.nfa import Nfa, NfaBuilder
from jaxsgl.grammar.regex import add_regex
from jaxsgl.grammar.tables import GrammarTables, assemble

_AHEAD_LEN = {"first_match": 1, "every_match": 0}


def lark_tables(
    text: str,
    limits: GrammarLimits,
    *,
    start: str = "start",
    mode: LexMode = "first_match",
    warnings: tuple[str, ...] = (),
) -> GrammarTables:
    """Compile a grammar. Raises GrammarError with the line it is about where there is one."""
    grammar = read_grammar(text, start)
    terminals = sorted(grammar.terminals, key=_preference)
    names = [str(terminal.name) for terminal in terminals]  # Lark has its own kind of text
    numbers = {name: number for number, name in enumerate(names)}
    lexer = LexerTables(
        mode=mode,
        nfa=_automaton(terminals, text, limits, _AHEAD_LEN[mode]),
        order=list(range(len(terminals))),
        keywords={},
        embedded={},
        ignored=[numbers[name] for name in grammar.ignored if name in numbers],
    )
    if mode == "first_match":
        _find_keywords(terminals, set(grammar.ignored), lexer)
    rules, rule_names, start_number = _rules(grammar, numbers, start)
    return assemble(
        lexer,
        rules,
        rule_names,
        start_number,
        terminal_names=[str(terminal.user_repr()) for terminal in terminals],
        terminal_patterns=[terminal.pattern.to_regexp() for terminal in terminals],
        ignored=lexer.ignored,
        warnings=list(warnings),
        limits=limits,
    )


def _preference(terminal: TerminalDef) -> tuple[int, int, int, str]:
    """The order in which Lark's lexer tries terminals."""
    pattern = terminal.pattern
    return -terminal.priority, -_max_width(terminal), -len(pattern.value), terminal.name


def _max_width(terminal: TerminalDef) -> int:
    try:
        return terminal.pattern.max_width
    except Exception:  # Reading the pattern itself will say what is wrong with it.
        return 0


def _automaton(
    terminals: list[TerminalDef], text: str, limits: GrammarLimits, ahead_len: int
) -> Nfa:
    builder = NfaBuilder(limits.max_nfa_states)
    for terminal in terminals:
        pattern = terminal.pattern.to_regexp()
        try:
            add_regex(builder, pattern, max_ahead_len=ahead_len)
            if terminal.pattern.min_width == 0:
                raise GrammarError("it can match the empty text")
        except GrammarError as error:
            shown = terminal.user_repr()
            line = line_of(terminal.name, text) or _line_with(terminal, text)
            raise GrammarError(f"terminal {shown}: {error}", line) from None
    return builder.finish()


def _line_with(terminal: TerminalDef, text: str) -> int | None:
    """The line where an anonymous terminal is written out."""
    raw = terminal.pattern.raw
    at = text.find(raw) if raw else -1
    return None if at < 0 else text.count("\n", 0, at) + 1


def _find_keywords(terminals: list[TerminalDef], ignored: set[str], lexer: LexerTables) -> None:
    """A literal that a pattern of equal priority matches whole takes the pattern's place (but what
    an ignored pattern matches stays ignored)."""
    literals = [
        (number, terminal)
        for number, terminal in enumerate(terminals)
        if isinstance(terminal.pattern, PatternStr)
    ]
    for number, terminal in enumerate(terminals):
        if not isinstance(terminal.pattern, PatternRE) or not literals:
            continue
        pattern = re.compile(terminal.pattern.to_regexp())
        for literal_number, literal in literals:
            if literal.priority != terminal.priority:
                continue
            match = pattern.match(literal.pattern.value)
            if match is None or match.end() != len(literal.pattern.value):
                continue
            if terminal.name not in ignored:
                lexer.keywords.setdefault(number, []).append(literal_number)
            if set(literal.pattern.flags) <= set(terminal.pattern.flags):
                lexer.embedded.setdefault(number, []).append(literal_number)


def _rules(
    grammar: LarkGrammar, terminals: dict[str, int], start: str
) -> tuple[list[Rule], list[str], int]:
    """Return rules with numbered symbols, their names for messages, and the start symbol."""
    symbols: dict[tuple[bool, str], int] = {(True, name): n for name, n in terminals.items()}

    def number(is_terminal: bool, name: str) -> int:
        return symbols.setdefault((is_terminal, str(name)), len(symbols) + 1)

    start_number = number(False, start)
    rules: list[Rule] = []
    names: list[str] = []
    for rule in grammar.rules:
        body = tuple(number(symbol.is_term, symbol.name) for symbol in rule.expansion)
        rules.append(Rule(number(False, rule.origin.name), body, rule.options.priority or 0))
        names.append(f"{rule.origin.name}: {' '.join(each.name for each in rule.expansion)}")
    return rules, names, start_number
