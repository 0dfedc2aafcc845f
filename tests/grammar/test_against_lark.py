"""Which texts a grammar accepts, against Lark itself."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lark import Lark
from lark.exceptions import GrammarError as LarkGrammarError

from tests.grammar.toy import SAMPLES, compiled, lark_spec, lark_takes, takes

TERMINALS = [
    "/a/", '"a"', '"ab"', "/a+/", "/ab?/", "/a*?b/", "/[ab]+/", '"b"', "/b(?!b)/", "/(a|ab)c?/",
    '"if"', "/[a-f]+/", "/[a-i]+/i", '"IF"i', "/ +/", '" "', "/1+/", '"1"', "/1(\\.1+)?/",
    '"."', '".."', "/a(?=b)/", "/(?:a(?:bb)?)+/", "/a.*?b/", "/c?a/", "/[ac]b*(?<!a)c?/",
]  # fmt: skip
SHAPES = [
    "start: (A | B | C)+",
    "start: A B C",
    "start: A (B A)* C?",
    "start: A? x\nx: B | C x",
    "start: [A] [B] [C]",
    "start: A | B start C",
]
ALPHABET = "abcif1. "


@st.composite
def grammars(draw: st.DrawFn) -> str:
    lines = [draw(st.sampled_from(SHAPES))]
    for name in "ABC":
        priority = draw(st.sampled_from(["", "", "", ".2", ".-1"]))
        lines.append(f"{name}{priority}: {draw(st.sampled_from(TERMINALS))}")
    if draw(st.booleans()):
        lines.append(f"%ignore {draw(st.sampled_from(['/ +/', '" "', '/[ .]/', '/b/']))}")
    return "\n".join(lines)


texts = st.lists(st.text(ALPHABET, max_size=7), min_size=8, max_size=16)


@settings(max_examples=150, deadline=None)
@given(grammars(), texts)
def test_random_grammars_accept_what_lark_accepts(text, samples):
    try:
        parser = Lark(text, parser="lalr")
    except LarkGrammarError:
        return  # Reduce/reduce conflicts: Lark has no parser to compare with.
    grammar = compiled(lark_spec(text))
    for sample in (*samples, "a", "ab", "abc", "aab", "1..1", "1.1", "if", "ifa", "a b"):
        expected = lark_takes(parser, sample)
        # Where Lark resolves a conflict by a shift, both ways are followed here.
        if expected or not grammar.tables.conflicts:
            assert takes(grammar, sample) == expected, sample


CASES = {
    "first terminal in order wins, not the longest": (
        'start: A B\nA.2: "a"\nB: "ab" | "b"', ["ab", "aab"], ["a", "abb"],
    ),
    "a keyword replaces a name of equal text": (
        'start: IF NAME | NAME "="\nIF: "if"\nNAME: /[a-z]+/\n%ignore " "',
        ["if x", "iff =", "if ifx"], ["if =", "if if x"],
    ),
    "an ignored keyword in a pattern's place fits nowhere": (
        'start: (A | C)+\nA: /a/\nC: / +/\n%ignore " "', ["a", "a  a", "   "], ["a a", " ", "a "],
    ),
    "the lexer goes back to its last match": (
        'start: INT ".." INT | FLOAT\nINT: /\\d+/\nFLOAT: /\\d+\\.\\d+/',
        ["1..2", "1.2", "12..34"], ["1.", "1.2.3", "1...2"],
    ),
    "a look-ahead ends a terminal": (
        'start: (A | W | B)+\nA: /\\d+(?![1-9a])/\nW: " "\nB: "a"',
        ["12 3", "a12 a", "1"], ["12a"],
    ),
    "escaped strings as Lark's library has them": (
        "%import common.ESCAPED_STRING\nstart: ESCAPED_STRING \"x\"?",
        ['"a"x', '"a\\"b"', '"a\\\\"x', '""'], ['"a\\"', '"a\\\\\\"x'],
    ),
    "comments may not be divisions": (
        'start: N ("/" N)* \nN: /\\d+/\n%ignore /\\/\\*(.|\\n)*?\\*\\//\n%ignore " "',
        ["1/2", "1 /* 3 / 4 */ / 2", "1/**//2"], ["1/*2", "1/ /2"],
    ),
    "templates and priorities": (
        SAMPLES["templates"], ["a,b;1|2.5", "a;1"], ["a,;1", "1;a", "a;1.|2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_table(name):
    text, accepted, refused = CASES[name]
    parser = Lark(text, parser="lalr")
    grammar = compiled(lark_spec(text))
    for sample in accepted:
        assert lark_takes(parser, sample)
        assert takes(grammar, sample), sample
    for sample in refused:
        assert not lark_takes(parser, sample)
        assert not takes(grammar, sample), sample


DOCUMENTS = {
    "json": ['{"a": [1, 2.5e-3, true, null], "b\\n": {"c": "é\\u00e9"}}', " [ ] ", '""'],
    "lark_json": ['{"a": [1, -2.5e3, true], "b\\"": {}}', "[[], [[]]]"],
    "sql": [
        "SELECT a, b.c AS d FROM t LEFT JOIN u ON a = b WHERE x IN (1, 2) -- c\nORDER BY a DESC;",
        "select * from (select 'it''s' from t) as x limit 3",
    ],
    "python_expression": [
        "f(x, *y, z=1)[1:2, ...] if a and not b else lambda q: {k: v for k, v in w}",
        "'a' \"b\\\"\" '''c'd''' r'\\x' + 0x1F - 1_000.5e3j * ~x ** -y",
        "0, 00, [*a], {**b}, (yield_ for yield_ in c)",
    ],
    "calculator": ["x = 1 + 2 * (3 - -4) / y", "1.5"],
    "turtle": ["c red yellow fill { repeat 36 { f 200 l 170 } }"],
    "templates": ["a, b ; 1 | 2.5"],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_documents_and_their_mutations(name):
    parser = Lark(SAMPLES[name], parser="lalr")
    grammar = compiled(lark_spec(SAMPLES[name]))
    draw = random.Random(name)
    for document in DOCUMENTS[name]:
        assert lark_takes(parser, document)
        assert takes(grammar, document)
        for _ in range(60):
            at = draw.randrange(len(document))
            cut = draw.choice([document[at : at + 1] * 2, "", draw.choice(document), "0", '"', "("])
            changed = document[:at] + cut + document[at + 1 :]
            assert takes(grammar, changed) == lark_takes(parser, changed), changed


def test_conflicts_are_followed_both_ways():
    """Lark shifts silently here and so refuses a text of the grammar."""
    text = 'start: a "y" | "x" "x" "z"\na: "x" a | "x"? '
    grammar = compiled(lark_spec('start: b "x" | "x" "y"\nb: "x"?'))
    assert grammar.tables.conflicts
    for sample in ("xx", "x", "xy"):
        assert takes(grammar, sample), sample
    assert not takes(compiled(lark_spec(text)), "xz")


def test_reduce_reduce_conflicts_are_followed_both_ways():
    text = 'start: a "x" | b "y"\na: "q"\nb: "q"\n'
    conflicting = 'start: a | b\na: "q" "x"?\nb: "q" "y"?'
    with pytest.raises(LarkGrammarError):
        Lark(conflicting, parser="lalr")
    grammar = compiled(lark_spec(conflicting))
    assert any("reduce a" in each and "reduce b" in each for each in grammar.tables.conflicts)
    assert [sample for sample in ("q", "qx", "qy") if not takes(grammar, sample)] == []
    assert not takes(grammar, "qxy")
    assert not compiled(lark_spec(text)).tables.conflicts


def test_ambiguity_without_end_stays_bounded():
    grammar = compiled(lark_spec('start: e\ne: e e | "a" | '))
    matcher = grammar.matcher()
    for _ in range(15):
        assert matcher.advance(ord("a") + 1)
    assert matcher.can_end
    assert matcher.error is None


def test_every_short_text_of_a_small_grammar():
    text = 'start: "(" start ")" start | X?\nX: /[ab](?!a)/\n%ignore " "'
    parser = Lark(text, parser="lalr")
    grammar = compiled(lark_spec(text))
    assert not grammar.tables.conflicts
    for length in range(6):
        for letters in itertools.product("(ab) ", repeat=length):
            sample = "".join(letters)
            assert takes(grammar, sample) == lark_takes(parser, sample), sample
