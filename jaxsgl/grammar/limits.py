"""How large a grammar may be, in every direction in which one can explode."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """Beyond any of these a grammar is refused, or the request that reached it fails alone."""

    max_source_bytes: int = 1 << 20
    """Length of the grammar, schema or pattern as text."""
    max_nfa_states: int = 100_000
    """Of all terminals together; `a{1000}{1000}` would need a million."""
    max_parser_states: int = 50_000
    max_lexer_states: int = 20_000
    """Of the lazily built DFA; each holds a few kilobytes."""
    max_branches: int = 32
    """Parses of one prefix that are followed side by side. Of more, the shallowest are kept: the
    mask may then be stricter than the grammar, never laxer."""
    max_nesting: int = 200
    """Depth of schemas, and of parentheses in regular expressions."""


DEFAULT_LIMITS = GrammarLimits()
