"""A grammar ready for requests."""

from __future__ import annotations

from typing import Protocol

from jaxsgl.grammar.automaton import Automaton
from jaxsgl.grammar.budget import ByteLru
from jaxsgl.grammar.grammar_matcher import GrammarMatcher
from jaxsgl.grammar.limits import GrammarLimits
from jaxsgl.grammar.mask_store import MaskStore
from jaxsgl.grammar.masks import Masks
from jaxsgl.grammar.matcher import Matcher
from jaxsgl.grammar.tables import GrammarTables, encode_tables
from jaxsgl.grammar.vocabulary import Vocabulary
from jaxsgl.grammar.walk import WalkCache, Walker

DEFAULT_MAX_BYTES = 64 << 20


class GrammarMemory:
    """What all grammars of one vocabulary share: walks and masks, within `max_bytes` together."""

    def __init__(self, vocabulary: Vocabulary, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.vocabulary = vocabulary
        self.walks: WalkCache = ByteLru(max_bytes // 2)
        self.masks = MaskStore(max_bytes // 2)

    @property
    def num_bytes(self) -> int:
        return self.walks.num_bytes + self.masks.num_bytes


class CompiledGrammar(Protocol):
    """May be shared by any number of matchers, each used from one thread at a time."""

    @property
    def warnings(self) -> tuple[str, ...]: ...

    @property
    def num_bytes(self) -> int:
        """What it takes of memory now, about. Masks that are shared are not counted."""
        ...

    @property
    def largest_part(self) -> bytes:
        """A text about as long as the longest that one token can oblige an answer to, such as the
        shortest item of a list. Nothing where that is not known."""
        ...

    def matcher(self) -> Matcher:
        """Return a matcher before the first token."""
        ...


TABLE_BYTES = 150
"""What a byte of encoded tables becomes in memory, about."""
LEXER_STATE_BYTES = 2500


class TableGrammar:
    """A grammar of the project's own engine."""

    def __init__(self, tables: GrammarTables, memory: GrammarMemory, limits: GrammarLimits) -> None:
        self.tables = tables
        self._tables_bytes = TABLE_BYTES * len(encode_tables(tables))
        self.automaton = Automaton(tables, limits)
        self._vocabulary = memory.vocabulary
        walker = Walker(
            self.automaton.lexer, tables.terminal_patterns, memory.vocabulary, memory.walks
        )
        self._masks = Masks(self.automaton, walker, memory.vocabulary, memory.masks)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self.tables.warnings)

    @property
    def largest_part(self) -> bytes:
        return self.tables.largest_part

    @property
    def num_bytes(self) -> int:
        return self._tables_bytes + LEXER_STATE_BYTES * self.automaton.lexer.num_states

    def matcher(self) -> GrammarMatcher:
        return GrammarMatcher(self.automaton, self._masks, self._vocabulary)
