"""The shortest ways to the end of a terminal."""

import re

import pytest

from jaxsgl.grammar.endings import MAX_ENDING_LEN, Endings
from jaxsgl.grammar.nfa import NfaBuilder
from jaxsgl.grammar.regex import add_regex


def endings_of(*patterns: str) -> tuple[Endings, list[int]]:
    builder = NfaBuilder(10_000)
    for pattern in patterns:
        add_regex(builder, pattern)
    nfa = builder.finish()
    return Endings(nfa), nfa.starts


@pytest.mark.parametrize(
    ("pattern", "whole", "others"),
    [
        ("abc", b"abc", [b"c", b"bc"]),
        (".*[0-9]{2}:x", b"00:x", [b"x", b":x", b"0:x"]),
        ("(bb|a)c+", b"ac", [b"c"]),
        ("a*", None, [b"a"]),
        ("é", "é".encode(), [b"\xa9"]),
    ],
)
def test_they_are_the_shortest(pattern, whole, others):
    endings, starts = endings_of(pattern)
    assert endings.of(starts) == ([] if whole is None else [whole])
    found = endings.all()
    assert [each for each in found if each in others] == others
    assert sorted(found, key=len) == found
    if whole is not None:
        assert whole in found and re.fullmatch(pattern.encode(), whole)
        assert all(whole.endswith(each) for each in others)


def test_they_can_be_read():
    assert endings_of("[^a]")[0].all()[0] == b" "


def test_each_terminal_has_its_own():
    endings, starts = endings_of("(ab)+", "c{3}")
    assert endings.of(starts[:1]) == [b"ab"]
    assert endings.of(starts) == [b"ab", b"ccc"]


def test_long_ones_are_left_out():
    endings, starts = endings_of(f"a{{{MAX_ENDING_LEN + 10}}}")
    assert endings.of(starts) == []
    assert len(endings.all()) == MAX_ENDING_LEN
