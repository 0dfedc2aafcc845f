"""Grammars in the notation of llama.cpp and SGLang (GBNF, also called EBNF there).

Such a grammar has no lexer: every text that the rules derive, character by character, is accepted.
It is translated to rules over terminals of single character sets and literals; nonrecursive parts
that are regular become one terminal where that is exact.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.limits import GrammarLimits
from jaxsgl.grammar.rule_builder import RuleBuilder, Symbol
from jaxsgl.grammar.tables import GrammarTables

MAX_REPEATS = 2000
"""Largest number in `{m,n}`."""

_TOKEN = re.compile(
    r"""
    (?P<blank>[ \t]+ | \#[^\n]* )
  | (?P<newline>\r?\n)
  | (?P<define>::=)
  | (?P<literal>"(?:[^"\\\n]|\\.)*")
  | (?P<set>\[\^?(?:[^\]\\\n]|\\.)*\])
  | (?P<name>[a-zA-Z_][a-zA-Z0-9_-]*)
  | (?P<count>\{[ ]*\d+[ ]*(?:,[ ]*\d*[ ]*)?\})
  | (?P<mark>[().|*+?])
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t"}


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


class _Part(NamedTuple):
    """What an expression became: a pattern if it is regular, else a symbol."""

    pattern: str | None
    symbol: Symbol | None = None
    may_be_empty: bool = False


def ebnf_tables(text: str, start: str, limits: GrammarLimits) -> GrammarTables:
    """Compile a grammar. Raises GrammarError with the line it is about."""
    return _Translator(text, limits).translate(start)


def _scan(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    line, at = 1, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise GrammarError(f"cannot read {text[at : at + 20]!r}", line)
        kind = match.lastgroup or ""
        if kind != "blank":
            tokens.append(_Token(kind, match.group(), line))
        line += match.group().count("\n")
        at = match.end()
    tokens.append(_Token("end", "the end", line))
    return tokens


class _Translator:
    """A parser by recursive descent. A rule is translated where it is first used."""

    def __init__(self, text: str, limits: GrammarLimits) -> None:
        self._limits = limits
        self._builder = RuleBuilder(limits)
        self._tokens = _scan(text)
        self._at = 0
        self._bodies = self._find_bodies()
        self._done: dict[str, _Part] = {}
        self._open: dict[str, Symbol | None] = {}
        """Rules that are being translated -> their symbol, if they were met inside themselves."""
        self._depth = 0

    def translate(self, start: str) -> GrammarTables:
        if start not in self._bodies:
            raise GrammarError(f"the grammar has no rule named {start!r} to start from")
        for name in self._bodies:
            self._check_names(name)
        part = self._rule(start)
        root = self._builder.nonterminal(start)
        self._builder.add_rule(root, *self._sequence_of(part))
        return self._builder.build(root, [])

    def _find_bodies(self) -> dict[str, int]:
        """Rule -> index of the first token after its `::=`."""
        bodies: dict[str, int] = {}
        tokens = self._tokens
        for index, (name, define) in enumerate(itertools.pairwise(tokens)):
            if name.kind == "name" and define.kind == "define":
                if name.text in bodies:
                    raise GrammarError(f"rule {name.text} is defined twice", name.line)
                bodies[name.text] = index + 2
        meaningful = (index for index, each in enumerate(tokens) if each.kind != "newline")
        first = next(meaningful)
        if first + 2 not in bodies.values():
            raise GrammarError("a grammar begins with `name ::= ...`", tokens[first].line)
        return bodies

    def _check_names(self, name: str) -> None:
        at = self._bodies[name]
        while not self._ends_rule(at):
            token = self._tokens[at]
            if token.kind == "name" and token.text not in self._bodies:
                raise GrammarError(f"rule {token.text} is used but not defined", token.line)
            at += 1

    def _ends_rule(self, at: int) -> bool:
        """Whether a rule's body ends before token `at`."""
        token = self._tokens[at]
        if token.kind == "end":
            return True
        return token.kind == "name" and self._tokens[at + 1].kind == "define"

    def _rule(self, name: str) -> _Part:
        if name in self._done:
            return self._done[name]
        if name in self._open:
            symbol = self._open[name]
            if symbol is None:
                symbol = self._open[name] = self._builder.nonterminal(name)
            return _Part(None, symbol)
        self._open[name] = None
        back, self._at = self._at, self._bodies[name]
        part = self._alternatives()
        if not self._ends_rule(self._at):
            token = self._tokens[self._at]
            raise GrammarError(f"unexpected {token.text!r} in rule {name}", token.line)
        self._at = back
        symbol = self._open.pop(name)
        if symbol is not None:
            self._builder.add_rule(symbol, *self._sequence_of(part))
            part = _Part(None, symbol)
        self._done[name] = part
        return part

    def _alternatives(self) -> _Part:
        self._depth += 1
        if self._depth > self._limits.max_nesting:
            raise GrammarError("the grammar is too deeply nested", self._tokens[self._at].line)
        parts = [self._sequence()]
        while self._skip_newlines().text == "|" and self._tokens[self._at].kind == "mark":
            self._at += 1
            parts.append(self._sequence())
        self._depth -= 1
        if len(parts) == 1:
            return parts[0]
        if all(part.pattern is not None for part in parts):
            return _Part(
                f"(?:{'|'.join(part.pattern or '' for part in parts)})",
                may_be_empty=any(part.may_be_empty for part in parts),
            )
        alternatives = [self._sequence_of(part) for part in parts]
        return _Part(None, self._builder.any_of("alternatives", *alternatives))

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while True:
            token = self._skip_newlines()
            if self._ends_rule(self._at) or token.text in ("|", ")"):
                break
            parts.append(self._item())
        joined: list[_Part] = []
        for part in parts:
            last = joined[-1] if joined else None
            if last is not None and last.pattern is not None and part.pattern is not None:
                empty = last.may_be_empty and part.may_be_empty
                joined[-1] = _Part(last.pattern + part.pattern, may_be_empty=empty)
            else:
                joined.append(part)
        if not joined:
            return _Part("", may_be_empty=True)
        if len(joined) == 1:
            return joined[0]
        body = [symbol for part in joined for symbol in self._sequence_of(part)]
        return _Part(None, self._builder.any_of("sequence", tuple(body)))

    def _item(self) -> _Part:
        token = self._tokens[self._at]
        self._at += 1
        if token.kind == "literal":
            text = _unescape(token.text[1:-1])
            part = _Part(f"(?:{re.escape(text)})", may_be_empty=not text)
        elif token.kind == "set":
            part = _Part(_character_set(token))
        elif token.kind == "name":
            part = self._rule(token.text)
        elif token.text == "." and token.kind == "mark":
            part = _Part("(?s:.)")
        elif token.text == "(" and token.kind == "mark":
            part = self._alternatives()
            if self._skip_newlines().text != ")":
                raise GrammarError("a parenthesis is not closed", token.line)
            self._at += 1
        else:
            raise GrammarError(f"unexpected {token.text!r}", token.line)
        while self._tokens[self._at].kind == "count" or self._tokens[self._at].text in "*+?":
            part = self._with_count(part, self._tokens[self._at])
            self._at += 1
        return part

    def _with_count(self, part: _Part, token: _Token) -> _Part:
        least, most = _bounds(token)
        if part.pattern is not None:
            upper = "" if most is None else most
            return _Part(
                f"(?:{part.pattern}){{{least},{upper}}}",
                may_be_empty=part.may_be_empty or least == 0,
            )
        if part.symbol is None:
            raise AssertionError("a part has a pattern or a symbol")
        return _Part(None, self._builder.repeated("repeat", part.symbol, least, most))

    def _skip_newlines(self) -> _Token:
        while self._tokens[self._at].kind == "newline":
            self._at += 1
        return self._tokens[self._at]

    def _sequence_of(self, part: _Part) -> tuple[Symbol, ...]:
        if part.symbol is not None:
            return (part.symbol,)
        if not part.pattern:
            return ()
        symbol = self._builder.pattern(part.pattern)
        return (self._builder.optional(symbol) if part.may_be_empty else symbol,)


def _bounds(token: _Token) -> tuple[int, int | None]:
    simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if token.text in simple:
        return simple[token.text]
    low, comma, high = token.text[1:-1].replace(" ", "").partition(",")
    least = int(low)
    most = least if not comma else int(high) if high else None
    if max(least, most or 0) > MAX_REPEATS or (most is not None and most < least):
        raise GrammarError(f"bad repetition {token.text}", token.line)
    return least, most


def _character_set(token: _Token) -> str:
    """The set in Python's notation."""
    body = token.text[1:-1]
    negated = body.startswith("^")
    body = body[negated:]
    members: list[str] = []
    at = 0
    while at < len(body):
        match = _ESCAPE.match(body, at)
        if match is None and body[at] == "-" and members and at + 1 < len(body):
            members.append("-")
            at += 1
            continue
        text = body[at] if match is None else match.group()
        members.append(_codepoint(_unescape(text)))
        at += len(text)
    if not members:
        if negated:
            return "(?s:.)"
        raise GrammarError("an empty character set matches nothing", token.line)
    return f"[{'^' if negated else ''}{''.join(members)}]"


def _codepoint(character: str) -> str:
    return f"\\U{ord(character):08x}"


def _unescape(text: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code:
            return chr(int(code, 16)) if int(code, 16) <= 0x10FFFF else "\ufffd"
        return _SIMPLE.get(match[4], match[4])

    return _ESCAPE.sub(replaced, text)
