"""Python regular expressions to automata over bytes, with the meaning `re` gives them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jaxsgl.grammar import codepoints
from jaxsgl.grammar.codepoints import ALL, Ranges, complement, union, with_case_variants
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.nfa import LookAhead, LookBehind, NfaBuilder
from jaxsgl.grammar.sre import Parsed, op, parse, sequence

ANY_LEN = -1
"""Look-ahead of any length is welcome."""

type AddCharacters = Callable[[NfaBuilder, int, Ranges], int]
"""Adds a move by any one of a set of characters; returns the state after it."""

_CATEGORIES: dict[Any, tuple[Callable[[], Ranges], bool]] = {
    op.CATEGORY_DIGIT: (codepoints.digits, False),
    op.CATEGORY_NOT_DIGIT: (codepoints.digits, True),
    op.CATEGORY_SPACE: (codepoints.spaces, False),
    op.CATEGORY_NOT_SPACE: (codepoints.spaces, True),
    op.CATEGORY_WORD: (codepoints.word_characters, False),
    op.CATEGORY_NOT_WORD: (codepoints.word_characters, True),
}
_STARTS = (op.AT_BEGINNING, op.AT_BEGINNING_STRING)
_ENDS = (op.AT_END, op.AT_END_STRING)


def add_regex(
    builder: NfaBuilder, pattern: str, *, whole_text: bool = False, max_ahead_len: int = ANY_LEN
) -> None:
    """Add `pattern` as a terminal of its own.

    `whole_text`: it will be matched against an entire text, so `^` at its start and `$` at its end
    say nothing new. `max_ahead_len`: by how many characters a look-ahead may read beyond the end
    of the match. Raises GrammarError naming what is wrong or not supported.
    """
    start = builder.begin_terminal()
    parsed = parse_regex(pattern)
    translator = PatternTranslator(
        builder, parsed.state.flags, whole_text=whole_text, max_ahead_len=max_ahead_len
    )
    builder.end_terminal(translator.add_sequence(parsed, start))


def parse_regex(pattern: str, flags: int = 0) -> Parsed:
    """Parse as Python would; raises GrammarError."""
    try:
        return parse(pattern, flags)
    except (re.error, OverflowError) as error:
        raise GrammarError(f"not a regular expression: {_shown(pattern)}: {error}") from None
    except RecursionError:
        raise GrammarError(f"too deeply nested: {_shown(pattern)}") from None


class PatternTranslator:
    """Adds parsed patterns to an automaton.

    Every method adds what an item matches after `source` and returns the state after it.
    `rest_len` is the least number of characters that the terminal matches after the item; `first`
    and `last` tell whether nothing of the terminal comes before or after it.
    """

    def __init__(
        self,
        builder: NfaBuilder,
        flags: int,
        *,
        whole_text: bool,
        max_ahead_len: int,
        add_characters: AddCharacters = NfaBuilder.add_characters,
    ) -> None:
        self._builder = builder
        self._flags = flags
        self._whole_text = whole_text
        self._max_ahead_len = max_ahead_len
        self._add_characters = add_characters

    def add_sequence(self, items: Parsed, source: int) -> int:
        """Add a whole pattern. Raises GrammarError for what is not supported."""
        try:
            return self._sequence(items, source, 0, True, True)
        except RecursionError:
            raise GrammarError("a regular expression is too deeply nested") from None

    def _sequence(self, items: Parsed, source: int, rest_len: int, first: bool, last: bool) -> int:
        widths = [sequence(items, [item]).getwidth() for item in items]
        least = sum(width[0] for width in widths)
        num_wide = sum(width[1] > 0 for width in widths)
        num_wide_before = 0
        for (code, argument), width in zip(items, widths, strict=True):
            least -= width[0]
            num_wide -= width[1] > 0
            source = self._item(
                code,
                argument,
                source,
                rest_len + least,
                first and num_wide_before == 0,
                last and num_wide == 0,
            )
            num_wide_before += width[1] > 0
        return source

    def _item(
        self, code: Any, argument: Any, source: int, rest_len: int, first: bool, last: bool
    ) -> int:
        builder = self._builder
        if code is op.BRANCH:
            target = builder.add_state()
            for alternative in argument[1]:
                start = builder.add_state()
                builder.add_silent(source, start)
                end = self._sequence(alternative, start, rest_len, first, last)
                builder.add_silent(end, target)
            return target
        if code is op.SUBPATTERN:
            _, added, removed, inner = argument
            outer = self._flags
            self._flags = (outer | added) & ~removed
            target = self._sequence(inner, source, rest_len, first, last)
            self._flags = outer
            return target
        if code in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, body = argument
            return self._repeat(code is op.MIN_REPEAT, least, most, body, source, rest_len)
        if code in (op.ASSERT, op.ASSERT_NOT):
            direction, body = argument
            return self._look(code is op.ASSERT_NOT, direction, body, source, rest_len)
        if code is op.AT:
            return self._anchor(argument, source, first, last)
        return self._add_characters(builder, source, self._characters(code, argument))

    def _repeat(
        self, lazy: bool, least: int, most: Any, body: Parsed, source: int, rest_len: int
    ) -> int:
        builder = self._builder
        if body.getwidth()[1] == 0:  # Once says as much as many times.
            least, most = min(least, 1), 1
        copies = least if most is op.MAXREPEAT else most
        builder.check_room(copies * body.getwidth()[0])  # Before making many of them.
        for _ in range(least):
            source = self._sequence(body, source, rest_len, False, False)
        target = builder.add_state()
        if most is op.MAXREPEAT:
            again = builder.add_state()
            builder.add_silent(source, again)
            self._add_choice(again, body, target, again, lazy, rest_len)
            return target
        for _ in range(most - least):
            next_ = builder.add_state()
            self._add_choice(source, body, target, next_, lazy, rest_len)
            source = next_
        builder.add_silent(source, target)
        return target

    def _add_choice(
        self,
        source: int,
        body: Parsed,
        leave: int,
        after_body: int,
        lazy: bool,
        rest_len: int,
    ) -> None:
        builder = self._builder
        enter = builder.add_state()
        builder.add_silent(source, *((leave, enter) if lazy else (enter, leave)))
        end = self._sequence(body, enter, rest_len, False, False)
        builder.add_silent(end, after_body)

    def _look(self, negated: bool, direction: int, body: Parsed, source: int, rest_len: int) -> int:
        builder = self._builder
        target = builder.add_state()
        if direction < 0:
            builder.nfa.behind[target] = LookBehind(self._ascii_bytes(body), negated)
        else:
            beyond = body.getwidth()[1] - rest_len
            if self._max_ahead_len != ANY_LEN and beyond > self._max_ahead_len:
                raise GrammarError(
                    f"a look-ahead reads more than {self._max_ahead_len} character(s) beyond the "
                    "end of its terminal"
                )
            start = builder.add_state()
            num_ahead = len(builder.nfa.ahead)
            end = self._sequence(body, start, 0, False, False)
            if len(builder.nfa.ahead) > num_ahead:
                raise GrammarError("a look-ahead inside a look-ahead is not supported")
            builder.nfa.ahead[target] = LookAhead(start, end, negated)
        builder.add_silent(source, target)
        return target

    def _ascii_bytes(self, body: Parsed) -> bytes:
        if len(body) == 1 and body[0][0] in (op.LITERAL, op.IN, op.NOT_LITERAL, op.ANY):
            ranges = self._characters(*body[0])
            if ranges[-1][1] <= 0x7F:
                return bytes(each for low, high in ranges for each in range(low, high + 1))
        raise GrammarError("a look-behind must be one ASCII character or a set of them")

    def _anchor(self, where: Any, source: int, first: bool, last: bool) -> int:
        fits = (where in _STARTS and first) or (where in _ENDS and last)
        if self._whole_text and fits:
            return source
        if where in _STARTS + _ENDS:
            raise GrammarError("^ and $ are supported at the ends of a regex constraint only")
        raise GrammarError(r"\b and \B are not supported")

    def _characters(self, code: Any, argument: Any) -> Ranges:
        if code is op.ANY:
            return ALL if self._flags & re.DOTALL else complement(((10, 10),))
        if code is op.LITERAL:
            return self._folded(((argument, argument),))
        if code is op.NOT_LITERAL:
            return complement(self._folded(((argument, argument),)))
        if code is op.IN:
            negated = argument[0][0] is op.NEGATE
            members = argument[1:] if negated else argument
            ranges = self._folded(union(each for member in members for each in self._set(*member)))
            return complement(ranges) if negated else ranges
        raise GrammarError(f"{_NAMES.get(code, str(code).lower())} are not supported")

    def _set(self, code: Any, argument: Any) -> Ranges:
        if code is op.LITERAL:
            return ((argument, argument),)
        if code is op.RANGE:
            return (argument,)
        members, negated = _CATEGORIES[argument]
        ranges = members()
        if self._flags & re.ASCII:
            ranges = tuple((low, min(high, 0x7F)) for low, high in ranges if low <= 0x7F)
        return complement(ranges) if negated else ranges

    def _folded(self, ranges: Ranges) -> Ranges:
        if not self._flags & re.IGNORECASE:
            return ranges
        folded = with_case_variants(ranges)
        if self._flags & re.ASCII:
            ascii_only = (each for each in folded if each[0] <= 0x7F)
            return union([*ranges, *((low, min(high, 0x7F)) for low, high in ascii_only)])
        return folded


_NAMES: dict[Any, str] = {
    op.GROUPREF: "back-references",
    op.GROUPREF_EXISTS: "conditional groups",
    op.ATOMIC_GROUP: "atomic groups",
    op.POSSESSIVE_REPEAT: "possessive repeats",
}


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")
