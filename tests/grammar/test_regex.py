"""Patterns against Python's `re`, which defines what they mean."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsgl.grammar.compiler import compile_tables
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.interface import RegexGrammar
from tests.grammar.toy import compiled, takes

TEXTS = ["".join(text) for n in range(4) for text in itertools.product("ab1", repeat=n)]

atoms = st.sampled_from(
    ["a", "b", "1", ".", "[ab]", "[^a]", r"\d", r"\w", "(?i:A)", "(?:)", "ab", "a|b"]
)


def extended(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    marks = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{0,2}?", "{2,}"])
    looks = st.sampled_from(["(?={})", "(?!{})"])
    return st.one_of(
        st.tuples(inner, marks).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(looks, atoms, inner).map(lambda parts: parts[0].format(parts[1]) + parts[2]),
    )


patterns = st.recursive(atoms, extended, max_leaves=6)


@settings(max_examples=100, deadline=None)
@given(patterns)
def test_accepts_exactly_the_full_matches(pattern):
    expected = {text for text in TEXTS if re.fullmatch(pattern, text)}
    try:
        grammar = compiled(RegexGrammar(pattern))
    except GrammarError as error:
        assert "no text at all" in str(error)
        assert not expected
        return
    assert {text for text in TEXTS if takes(grammar, text)} == expected


@pytest.mark.parametrize(
    ("pattern", "accepted", "refused"),
    [
        ("a|ab", ["a", "ab"], ["b", "abb"]),
        ("^(a+)+$", ["a", "aaaa"], ["", "b"]),
        (r"\A[é-ü]\Z", ["é", "ü"], ["e"]),
        (r"(?=.*\d)(?=.*[a-z]).{3,8}", ["a1b", "12345x"], ["abc", "a1"]),
        (r"[^\x00-\x7f]{2}", ["日本", "é😀"], ["ab", "é"]),
        (r"(?i)straße", ["STRAßE", "ſtraße"], ["strasse"]),
        (r"x(?<!y)z", ["xz"], ["yz"]),
        (r"[ab](?<=a)c", ["ac"], ["bc"]),
        (r"(?s).", ["\n", "a"], ["ab"]),
        (".", ["a"], ["\n"]),
    ],
)
def test_table(pattern, accepted, refused):
    grammar = compiled(RegexGrammar(pattern))
    assert [text for text in accepted if not takes(grammar, text)] == []
    assert [text for text in refused if takes(grammar, text)] == []


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("a(b", "unterminated subpattern"),
        ("a)b", "unbalanced parenthesis"),
        (r"(a)\1", "back-references"),
        ("(?P<n>a)(?P=n)", "back-references"),
        ("(?>a)b", "atomic groups"),
        ("a++b", "possessive repeats"),
        (r"a\b", r"\b and \B"),
        ("a$b", "^ and $"),
        ("(?:a{1000}){1000}", "automaton states"),
        ("(?:(?:a{100}){100}){100}", "automaton states"),
        ("(?<=é)a", "look-behind must be one ASCII"),
        ("(?<!a)b", "look-behind at the beginning"),
        ("(" * 2000 + "a" + ")" * 2000, "too deeply nested"),
        ("[^\\s\\S]", "matches no text at all"),
        ("a" * (1 << 20) + "b", "longer than"),
        ("(?:){4000000000}", None),
    ],
)
def test_refused_within_limits(pattern, complaint):
    if complaint is None:
        assert takes(compiled(RegexGrammar(pattern)), "")
        return
    with pytest.raises(GrammarError) as error:
        compile_tables(RegexGrammar(pattern))
        compiled(RegexGrammar(pattern)).matcher()
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
