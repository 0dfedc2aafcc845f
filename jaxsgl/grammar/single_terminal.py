"""Grammars of one terminal: a regular expression, or a choice of texts."""

from __future__ import annotations

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.lalr import Rule
from jaxsgl.grammar.lexer import DEAD, Lexer, LexerTables
from jaxsgl.grammar.limits import GrammarLimits
from jaxsgl.grammar.nfa import NfaBuilder
from jaxsgl.grammar.regex import add_regex
from jaxsgl.grammar.tables import GrammarTables, assemble


def regex_tables(pattern: str, limits: GrammarLimits) -> GrammarTables:
    """The whole text matches `pattern`; `^` and `$` may stand at its ends."""
    builder = NfaBuilder(limits.max_nfa_states)
    add_regex(builder, pattern, whole_text=True)
    tables = _tables(builder, "regex", pattern, limits)
    # Look-aheads may contradict each other.
    if Lexer(tables.lexer, limits.max_lexer_states).begin(frozenset({0})) == DEAD:
        raise GrammarError("the grammar matches no text at all")
    return tables


def choice_tables(choices: tuple[str, ...], limits: GrammarLimits) -> GrammarTables:
    """The text is one of `choices`."""
    if not choices:
        raise GrammarError("a choice needs at least one text")
    builder = NfaBuilder(limits.max_nfa_states)
    try:
        builder.add_literals([choice.encode() for choice in choices])
    except UnicodeEncodeError:
        raise GrammarError("a choice holds a lone surrogate, which is not a character") from None
    # Of no use to other grammars, so any name that no pattern has will do.
    return _tables(builder, "choice", f"(?choice){choices!r}", limits)


def _tables(builder: NfaBuilder, name: str, pattern: str, limits: GrammarLimits) -> GrammarTables:
    start = 2  # After the terminal and the end of the text.
    nfa = builder.finish()
    return assemble(
        LexerTables("every_match", nfa, order=[0], keywords={}, embedded={}, ignored=[]),
        [Rule(start, (0,))],
        [name],
        start,
        terminal_names=[name],
        terminal_patterns=[pattern],
        ignored=[],
        warnings=[],
        limits=limits,
    )
