"""Grammars that must be refused in one line, or must not harm."""

import pytest

from jaxsgl.grammar.compiler import compile_tables
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.lark_source import LIBRARIES
from jaxsgl.interface import ChoiceGrammar, LarkGrammar
from tests.grammar.toy import EOS, byte_token, compiled, mask_of, takes


@pytest.mark.parametrize(
    ("text", "complaint", "line"),
    [
        ("start: a", "'a' used but not defined", 1),
        ('start: "a"\nb: c', "'c' used but not defined", 2),
        ('start: "a"\nstart: "b"', "defined more than once", 1),
        ('begin: "a"', "no rule named 'start'", None),
        ("start: (", "Unclosed parenthesis", 1),
        ('start: "a"\n\n%%%', "Unexpected input", 3),
        ("", "no rule named 'start'", None),
        ('start: "a" /a(b/', "unterminated subpattern", 1),
        ("start: A\n\nA: /(a)\\1/", "terminal A: back-references", 3),
        ("start: A\nA: /x*/", "terminal A: it can match the empty text", 2),
        ("start: A\nA: /a\\b/", r"terminal A: \b and \B", 2),
        ("start: A\nA: /^a/", "terminal A: ^ and $", 2),
        ("start: A\nA: /a(?!bc)/", "terminal A: a look-ahead reads more than 1", 2),
        ("start: A\nA: /(?<!b)a/", "look-behind at the beginning", None),
        ("start: /(a{1000}){1000}/", "automaton states", 1),
        ("start: A\nA: B\nB: A", "Recursion in terminal", 2),
        ("start: A\nA: /[^\\s\\S]/", "matches no text at all", None),
        (
            '%declare _INDENT\nstart: _INDENT "a"',
            "%declare _INDENT: terminals that only a postlex",
            1,
        ),
        ("%import python (file_input)\nstart: file_input", "only a postlex makes", None),
        ('start: "a"\n%import .secret.x', "%import .secret: only", 2),
        ("%import etc.passwd.x\nstart: x", "%import etc.passwd: only", 1),
        ('start: "a" ~ 3..1', "Bad Range", None),
        ("start: x{A}\nx{a}: a a\nA: x{A}", "", None),
    ],
)
def test_refused_with_construct_and_line(text, complaint, line):
    with pytest.raises(GrammarError) as error:
        compiled(LarkGrammar(text)).matcher()
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
    if line is not None:
        assert error.value.line == line


def test_libraries_can_be_imported():
    assert "common" in LIBRARIES
    text = "%import common (INT, WS)\n%import common.CNAME -> NAME\nstart: NAME INT\n%ignore WS"
    assert takes(compiled(LarkGrammar(text)), " ab 12 ")


def test_a_grammar_that_never_ends_runs_on():
    grammar = compiled(LarkGrammar('start: "a" start'))
    assert grammar.warnings == ("no text of this grammar ever ends",)
    matcher = grammar.matcher()
    for _ in range(50):
        assert EOS not in mask_of(matcher)
        assert matcher.advance(byte_token(ord("a")))
    assert not matcher.can_end


def test_alternatives_that_never_end_are_not_offered():
    grammar = compiled(LarkGrammar('start: "a" | "b" x\nx: "c" x'))
    assert grammar.matcher().forced_bytes(4) == b"a"


def test_choices():
    for bad in ((), ("\ud800",)):
        with pytest.raises(GrammarError):
            compile_tables(ChoiceGrammar(bad))
    many = tuple(f"choice number {number}" for number in range(10**6))
    with pytest.raises(GrammarError, match="longer than"):
        compile_tables(ChoiceGrammar(many))
    assert takes(compiled(ChoiceGrammar(many[:1000])), "choice number 999")


def test_deep_texts_do_not_recurse():
    """Stacks as deep as the text is long."""
    grammar = compiled(LarkGrammar('start: "(" start ")" | "x"'))
    matcher = grammar.matcher()
    for byte in b"(" * 3000 + b"x" + b")" * 3000:
        assert matcher.advance(byte_token(byte))
    assert matcher.can_end
    assert mask_of(matcher).tolist() == [EOS]
