"""Regular expressions that end an answer, however its bytes are cut."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.pattern_dfa import pattern_dfa
from jaxsgl.scheduling.stop_matcher import StopMatcher
from tests.scheduling.test_stop_matcher import feed_all

PATTERNS = ("a+b", "é|ba", "[0-9]{3}", "b.b", "(ab)+é", r"a\s?b")


def first_end(pattern: str, text: str) -> tuple[int, int] | None:
    """Begin and end in bytes of the match that is complete first, the longest of those."""
    for end in range(len(text) + 1):
        for begin in range(end):
            if re.fullmatch(pattern, text[begin:end]):
                return len(text[:begin].encode()), len(text[:end].encode())
    return None


@given(
    pattern=st.sampled_from(PATTERNS),
    text=st.text(alphabet="abé 07\n", max_size=20),
    cuts=st.lists(st.integers(0, 40)),
    keep=st.booleans(),
)
def test_ends_where_a_match_is_first_complete(
    pattern: str, text: str, cuts: list[int], keep: bool
) -> None:
    data = text.encode()
    edges = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    pieces = [data[low:high] for low, high in itertools.pairwise(edges)]
    out, matched = feed_all(StopMatcher((), (pattern_dfa(pattern),), keep=keep), pieces)
    expected = first_end(pattern, text)
    if expected is None:
        assert (out, matched) == (data, None)
    else:
        assert (out, matched) == (data[: expected[1] if keep else expected[0]], pattern)


def test_holds_back_only_what_a_match_may_claim() -> None:
    matcher = StopMatcher((), (pattern_dfa("[0-9]{3}"),))
    assert matcher.feed(b"x12") == (b"x", None)
    assert matcher.feed(b"y3") == (b"12y", None)
    assert matcher.finish() == b"3"


def test_texts_and_patterns_together() -> None:
    def matcher() -> StopMatcher:
        return StopMatcher(("bc",), (pattern_dfa("c+d"),))

    assert feed_all(matcher(), [b"ab", b"cd"]) == (b"a", "bc")
    assert feed_all(matcher(), [b"ac", b"cd"]) == (b"a", "c+d")


@pytest.mark.parametrize(
    "pattern", ["a*", "(", "^a", "a$", r"\bx", "(?=a)b", "(a{99}){99}", "", "(a)\\1"]
)
def test_refused(pattern: str) -> None:
    with pytest.raises(GrammarError):
        pattern_dfa(pattern)


def test_a_stop_can_be_kept() -> None:
    assert StopMatcher(("END",), keep=True).feed(b"text END more") == (b"text END", "END")
