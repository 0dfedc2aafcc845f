"""Grammars in Lark's language, read by Lark itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lark.exceptions import LarkError
from lark.grammar import Rule as LarkRule
from lark.lexer import TerminalDef
from lark.load_grammar import Grammar, GrammarBuilder

from jaxsgl.grammar.errors import GrammarError

LIBRARIES = ("common", "lark", "python", "unicode")
"""What `%import` may name: the grammars that come with Lark."""


_NAME = "the grammar"


class LarkGrammar(NamedTuple):
    rules: list[LarkRule]
    terminals: list[TerminalDef]
    """Those that rules or `%ignore` use."""
    ignored: list[str]


class _Builder(GrammarBuilder):
    """Lark's reader, kept away from the file system."""

    def do_import(
        self,
        dotted_path: tuple[str, ...],
        base_path: str | None,
        aliases: dict[str, str],
        base_mangle: Callable[[str], str] | None = None,
    ) -> None:
        library = ".".join(dotted_path)
        if base_path is not None or library not in LIBRARIES:
            shown = library if base_path is None else f".{library}"
            raise GrammarError(f"%import {shown}: only {', '.join(LIBRARIES)} can be imported from")
        super().do_import(dotted_path, base_path, aliases, base_mangle)


def read_grammar(text: str, start: str) -> LarkGrammar:
    """Return the rules and terminals of a grammar, templates and repetitions expanded.

    Raises GrammarError with the line where there is one.
    """
    try:
        grammar: Any = _load(text)
        if start not in {str(definition[0]) for definition in grammar.rule_defs}:
            raise GrammarError(f"the grammar has no rule named {start!r} to start from")
        terminals, rules, ignored = grammar.compile([start], set())
    except GrammarError:
        raise
    except LarkError as error:
        raise _translated(error, text) from None
    except RecursionError:
        raise GrammarError("the grammar is too deeply nested") from None
    except Exception as error:  # What Lark does not expect itself, such as errors of `re`.
        line = _line_at(text.find(str(getattr(error, "pattern", None) or "\0")), text)
        raise GrammarError(
            f"Lark cannot compile this grammar: {_first_line(error)}", line
        ) from None
    _check_declared(rules, terminals, text)
    return LarkGrammar(list(rules), list(terminals), [str(name) for name in ignored])


def line_of(name: str, text: str) -> int | None:
    """The line that defines a rule or terminal, where the grammar itself does."""
    found = re.search(rf"^[ \t]*[?!]*{re.escape(name)}\b[^:\n]*:", text, re.MULTILINE)
    return None if found is None else _line_at(found.start(), text)


def _line_at(at: int, text: str) -> int | None:
    """The line of a place in the text; None if the place is -1."""
    return None if at < 0 else text.count("\n", 0, at) + 1


def _load(text: str) -> Grammar:
    builder = _Builder()
    try:
        builder.load_grammar(text, _NAME)
    except GrammarError as error:
        allowed = "|".join(LIBRARIES)
        found = re.search(rf"^[ \t]*%import[ \t]+(?!(?:{allowed})\b)", text, re.MULTILINE)
        line = None if found is None else _line_at(found.start(), text)
        raise GrammarError(str(error), line) from None
    return builder.build()


def _check_declared(rules: Iterable[LarkRule], terminals: Iterable[TerminalDef], text: str) -> None:
    defined = {terminal.name for terminal in terminals}
    for rule in rules:
        for symbol in rule.expansion:
            if symbol.is_term and symbol.name not in defined:
                found = re.search(rf"^[ \t]*%declare\b.*\b{symbol.name}\b", text, re.MULTILINE)
                line = None if found is None else _line_at(found.start(), text)
                raise GrammarError(
                    f"%declare {symbol.name}: terminals that only a postlex makes are not "
                    "supported",
                    line,
                )


def _first_line(error: Exception) -> str:
    return next((each.strip() for each in str(error).splitlines() if each.strip()), "")


def _translated(error: LarkError, text: str) -> GrammarError:
    """Lark's complaint as one line, with the place."""
    first_line = _first_line(error).removesuffix(f" in {_NAME}:")
    place = re.search(r",? at line (\d+) column \d+", first_line)
    if place is not None:
        return GrammarError(f"not a Lark grammar: {first_line[: place.start()]}", int(place[1]))
    names = re.findall(r"[A-Za-z_][A-Za-z0-9_]*", first_line)
    line = next((at for at in (line_of(name, text) for name in names) if at is not None), None)
    return GrammarError(f"not a Lark grammar: {first_line}", line)
