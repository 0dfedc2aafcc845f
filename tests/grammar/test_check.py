import pytest

from jaxsgl.grammar.check import MAX_SHOWN_TOKENS, check_grammar
from jaxsgl.grammar.compiled import GrammarMemory
from jaxsgl.grammar.compiler import GrammarCompiler
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.interface import JsonSchemaGrammar, LarkGrammar, RegexGrammar
from tests.grammar.toy import toy_vocabulary


def check(spec, prefix=b""):
    vocabulary = toy_vocabulary()
    return check_grammar(GrammarCompiler(GrammarMemory(vocabulary)), vocabulary, spec, prefix)


def test_a_grammar_with_a_conflict():
    report = check(LarkGrammar('start: e\ne: e "+" e | N\nN: /[0-9]+/'), b"12+")
    assert report.engine == "lark"
    assert [(each.name, each.pattern) for each in report.terminals] == [
        ("N", "[0-9]+"),
        ("PLUS", r"\+"),
    ]
    assert report.conflicts == ["on PLUS: shift or reduce e: e PLUS e"]
    assert report.prefix_taken_len == 3
    assert not report.can_end
    assert {text for _, text in report.allowed_tokens} >= {b"0", b"12", b"01"}
    assert report.forced == b""
    assert report.compile_ms > 0
    assert report.error is None


def test_a_prefix_that_does_not_fit_is_followed_as_far_as_it_does():
    report = check(LarkGrammar('start: "true" "x"'), b"trzz")
    assert report.prefix_taken_len == 2
    assert report.forced == b"uex"
    assert report.num_allowed_tokens == len(report.allowed_tokens)


def test_the_end():
    report = check(RegexGrammar("a?"), b"a")
    assert report.can_end
    assert report.allowed_tokens == [(0, b"")]
    assert check(RegexGrammar("(?s).*")).num_allowed_tokens > MAX_SHOWN_TOKENS


def test_a_schema():
    report = check(JsonSchemaGrammar('{"const": "abc", "format": "topic"}'), b'"a')
    assert report.engine == "llguidance"
    assert report.warnings == ["format 'topic' is ignored"]
    assert report.forced == b'bc"'


def test_bad_grammars_raise():
    with pytest.raises(GrammarError):
        check(LarkGrammar("start: ("))
