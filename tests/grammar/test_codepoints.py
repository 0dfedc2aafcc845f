import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsgl.grammar import codepoints
from jaxsgl.grammar.codepoints import MAX_CODEPOINT, Ranges, complement, union, utf8_sequences

ranges = st.lists(
    st.tuples(st.integers(0, MAX_CODEPOINT), st.integers(0, 3000)), min_size=1, max_size=5
).map(lambda pairs: union((low, min(low + size, MAX_CODEPOINT)) for low, size in pairs))


def matches(sequences: list[tuple[tuple[int, int], ...]], data: bytes) -> int:
    return sum(
        len(sequence) == len(data)
        and all(low <= byte <= high for (low, high), byte in zip(sequence, data, strict=True))
        for sequence in sequences
    )


def inside(members: Ranges, codepoint: int) -> bool:
    return any(low <= codepoint <= high for low, high in members)


@given(ranges, st.lists(st.integers(0, MAX_CODEPOINT), max_size=20))
def test_utf8_sequences_match_each_member_once_and_nothing_else(members, others):
    sequences = list(utf8_sequences(members))
    edges = [each + step for low, high in members for each in (low, high) for step in (-1, 0, 1)]
    for codepoint in (*edges, *others):
        if 0 <= codepoint <= MAX_CODEPOINT and not 0xD800 <= codepoint <= 0xDFFF:
            expected = int(inside(members, codepoint))
            assert matches(sequences, chr(codepoint).encode()) == expected


@given(ranges)
def test_complement_holds_exactly_the_rest(members):
    assert complement(complement(members)) == members
    assert union([*members, *complement(members)]) == ((0, MAX_CODEPOINT),)


@pytest.mark.parametrize(
    ("category", "members"),
    [(r"\d", codepoints.digits), (r"\s", codepoints.spaces), (r"\w", codepoints.word_characters)],
)
def test_categories_are_those_of_re(category, members):
    text = "".join(map(chr, range(MAX_CODEPOINT + 1)))
    found = [match.span() for match in re.finditer(f"{category}+", text)]
    assert [(start, end - 1) for start, end in found] == list(members())


@pytest.mark.parametrize("character", ["a", "K", "ſ", "ß", "µ", "İ", "ı", "Σ", "ς", "ǅ", "1", "日"])
def test_case_variants_are_those_of_re(character):
    pattern = re.compile(re.escape(character), re.IGNORECASE)
    expected = {each for each in range(0x2FFF) if pattern.fullmatch(chr(each))}
    found = codepoints.with_case_variants(((ord(character),) * 2,))
    assert {each for each in range(0x2FFF) if inside(found, each)} == expected
