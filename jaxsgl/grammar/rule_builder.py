"""Grammars put together rule by rule, without a lexer's choices: every reading is followed."""

from __future__ import annotations

from typing import NamedTuple

from jaxsgl.grammar.json_schema.strings import add_string_with
from jaxsgl.grammar.lalr import Rule
from jaxsgl.grammar.lexer import LexerTables
from jaxsgl.grammar.limits import GrammarLimits
from jaxsgl.grammar.nfa import NfaBuilder
from jaxsgl.grammar.regex import add_regex
from jaxsgl.grammar.tables import GrammarTables, assemble


class Symbol(NamedTuple):
    """A terminal or nonterminal of one builder."""

    is_terminal: bool
    number: int


class RuleBuilder:
    """Collects terminals and rules; equal terminals are made once."""

    def __init__(self, limits: GrammarLimits) -> None:
        self._limits = limits
        self._nfa = NfaBuilder(limits.max_nfa_states)
        self._terminals: dict[tuple[str, ...], Symbol] = {}
        self._rules: list[tuple[int, tuple[Symbol, ...]]] = []
        self._names: list[str] = []
        self._repeats: dict[tuple[str, Symbol, Symbol | None], Symbol] = {}

    def literal(self, text: str) -> Symbol:
        """A terminal that is exactly `text`, which must not be empty."""
        return self.literals([text])

    def literals(self, texts: list[str]) -> Symbol:
        """A terminal that is any of `texts`, none of which may be empty."""
        return self._terminal("literal", *texts)

    def pattern(self, regex: str) -> Symbol:
        """A terminal of the texts that `regex` matches whole, the empty one excepted."""
        return self._terminal("pattern", regex)

    def string_with(self, regex: str) -> Symbol:
        """A terminal of the JSON strings in whose text `regex` is found."""
        return self._terminal("string", regex)

    def nonterminal(self, name: str) -> Symbol:
        """A new one without rules; the name is for messages."""
        self._names.append(name)
        return Symbol(False, len(self._names) - 1)

    def add_rule(self, origin: Symbol, *symbols: Symbol) -> None:
        self._rules.append((origin.number, symbols))

    def any_of(self, name: str, *alternatives: tuple[Symbol, ...]) -> Symbol:
        """A new nonterminal that is one of `alternatives`, each a sequence."""
        symbol = self.nonterminal(name)
        for alternative in dict.fromkeys(alternatives):
            self.add_rule(symbol, *alternative)
        return symbol

    def optional(self, symbol: Symbol) -> Symbol:
        return self._repeated("?", symbol, None)

    def one_or_more(self, symbol: Symbol, separator: Symbol | None = None) -> Symbol:
        return self._repeated("+", symbol, separator)

    def zero_or_more(self, symbol: Symbol) -> Symbol:
        return self.optional(self.one_or_more(symbol))

    def repeated(self, name: str, symbol: Symbol, least: int, most: int | None) -> Symbol:
        """`symbol` from `least` to `most` times in a row, without bound if None.

        Adds one rule for each time, so callers bound the numbers.
        """
        if most is None:
            tail = self.zero_or_more(symbol)
            return self.any_of(name, (*(symbol,) * least, tail))
        rest: Symbol | None = None
        for _ in range(most - least):
            rest = self.optional(self.any_of(name, (symbol,) if rest is None else (symbol, rest)))
        return self.any_of(name, (*(symbol,) * least, *(() if rest is None else (rest,))))

    def build(self, start: Symbol, warnings: list[str]) -> GrammarTables:
        """Return the tables of the texts of `start`, a nonterminal."""
        count = len(self._terminals)
        first = count + 1  # The end of the text lies between.

        def number(symbol: Symbol) -> int:
            return symbol.number if symbol.is_terminal else first + symbol.number

        rules = [Rule(first + origin, tuple(map(number, body))) for origin, body in self._rules]
        kinds = list(self._terminals)
        return assemble(
            LexerTables(
                mode="every_match",
                nfa=self._nfa.finish(),
                order=list(range(count)),
                keywords={},
                embedded={},
                ignored=[],
            ),
            rules,
            [self._names[origin] for origin, _ in self._rules],
            number(start),
            terminal_names=["|".join(texts) for _, *texts in kinds],
            terminal_patterns=[repr(kind) for kind in kinds],
            ignored=[],
            warnings=warnings,
            limits=self._limits,
        )

    def _terminal(self, kind: str, *sources: str) -> Symbol:
        symbol = self._terminals.get((kind, *sources))
        if symbol is None:
            if kind == "literal":
                self._nfa.add_literals([source.encode() for source in sources])
            elif kind == "string":
                add_string_with(self._nfa, sources[0])
            else:
                add_regex(self._nfa, sources[0], max_ahead_len=0)
            symbol = self._terminals[kind, *sources] = Symbol(True, len(self._terminals))
        return symbol

    def _repeated(self, kind: str, symbol: Symbol, separator: Symbol | None) -> Symbol:
        key = (kind, symbol, separator)
        found = self._repeats.get(key)
        if found is None:
            found = self._repeats[key] = self.nonterminal(kind)
            if kind == "?":
                self.add_rule(found)
                self.add_rule(found, symbol)
            else:
                between = () if separator is None else (separator,)
                self.add_rule(found, symbol)
                self.add_rule(found, found, *between, symbol)
        return found
