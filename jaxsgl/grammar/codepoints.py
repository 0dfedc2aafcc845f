"""Sets of code points as sorted ranges, and the UTF-8 byte sequences that encode them."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from jaxsgl.grammar.sre import EXTRA_CASES, unicode_tolower

MAX_CODEPOINT = 0x10FFFF

type Ranges = tuple[tuple[int, int], ...]
"""Inclusive ranges of code points, ascending, neither overlapping nor adjacent."""

ALL: Ranges = ((0, MAX_CODEPOINT),)

_LAST_OF_LEN = (0x7F, 0x7FF, 0xFFFF, MAX_CODEPOINT)
_SURROGATES = (0xD800, 0xDFFF)


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Normalise ranges given in any order."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Ranges) -> Ranges:
    """Everything else."""
    gaps: list[tuple[int, int]] = []
    start = 0
    for low, high in ranges:
        if low > start:
            gaps.append((start, low - 1))
        start = high + 1
    if start <= MAX_CODEPOINT:
        gaps.append((start, MAX_CODEPOINT))
    return tuple(gaps)


@functools.cache
def digits() -> Ranges:
    r"""What `\d` matches in a Python pattern of type str."""
    return _ranges_where(np.strings.isdecimal(_all_characters()))


@functools.cache
def spaces() -> Ranges:
    r"""What `\s` matches."""
    return _ranges_where(np.strings.isspace(_all_characters()))


@functools.cache
def word_characters() -> Ranges:
    r"""What `\w` matches."""
    is_word = np.strings.isalnum(_all_characters())
    is_word[ord("_")] = True
    return _ranges_where(is_word)


def with_case_variants(ranges: Ranges) -> Ranges:
    """Add what IGNORECASE lets each character stand for."""
    added = [
        (variant, variant)
        for low, high in ranges
        for codepoint, variants in _case_variants()
        if low <= codepoint <= high
        for variant in variants
    ]
    return union([*ranges, *added]) if added else ranges


def utf8_sequences(ranges: Ranges) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield sequences of inclusive byte ranges that together match exactly the encodings of
    `ranges`, surrogates left out.

    The method is Russ Cox's ("Regular Expression Matching in the Wild", 2010): cut a range where
    the length of the encoding changes, then where its last bytes do not run through all values.
    """
    work = list(reversed(ranges))
    while work:
        low, high = work.pop()
        cut = _cut(low, high)
        if cut is not None:
            work.extend(reversed(cut))
        elif low <= high:
            first, last = chr(low).encode(), chr(high).encode()
            yield tuple(zip(first, last, strict=True))


def _cut(low: int, high: int) -> list[tuple[int, int]] | None:
    """Split a range that one sequence cannot express; None if one can."""
    first, last = _SURROGATES
    if low <= last and high >= first:
        return [(low, first - 1), (last + 1, high)]
    for limit in _LAST_OF_LEN[:-1]:
        if low <= limit < high:
            return [(low, limit), (limit + 1, high)]
    if low > high or high <= _LAST_OF_LEN[0]:
        return None
    for num_trailing in (1, 2, 3):
        mask = (1 << (6 * num_trailing)) - 1
        if low | mask == high | mask:
            continue
        if low & mask:
            return [(low, low | mask), ((low | mask) + 1, high)]
        if high & mask != mask:
            return [(low, (high & ~mask) - 1), (high & ~mask, high)]
    return None


def _all_characters() -> np.ndarray:
    return np.arange(MAX_CODEPOINT + 1, dtype=np.uint32).view("<U1")


def _ranges_where(wanted: np.ndarray) -> Ranges:
    edges = np.flatnonzero(np.diff(wanted.astype(np.int8), prepend=0, append=0))
    return tuple((int(low), int(end) - 1) for low, end in edges.reshape(-1, 2))


@functools.cache
def _case_variants() -> tuple[tuple[int, frozenset[int]], ...]:
    """Every cased code point with all that match it under IGNORECASE."""
    characters = _all_characters()
    cased = np.flatnonzero(np.strings.isupper(characters) | np.strings.istitle(characters))
    groups: defaultdict[int, set[int]] = defaultdict(set)
    for codepoint in cased.tolist():
        lower = unicode_tolower(codepoint)
        if lower != codepoint:
            groups[lower] |= {codepoint, lower}
    for codepoint, extra in EXTRA_CASES.items():
        joined = {codepoint, *extra}.union(*(groups[each] for each in (codepoint, *extra)))
        for each in joined:
            groups[each] = joined
    variants: defaultdict[int, set[int]] = defaultdict(set)
    for group in groups.values():
        for codepoint in group:
            variants[codepoint] |= group
    return tuple((each, frozenset(variants[each])) for each in sorted(variants))
