import random

import numpy as np
import pytest

from jaxsgl.grammar.compiled import GrammarMemory, TableGrammar
from jaxsgl.grammar.compiler import GrammarCompiler, compile_tables
from jaxsgl.grammar.limits import GrammarLimits
from jaxsgl.grammar.matcher import MAX_ROLLBACK
from jaxsgl.grammar.vocabulary import Vocabulary
from jaxsgl.interface import JsonSchemaGrammar, LarkGrammar, RegexGrammar
from tests.grammar.toy import EOS, JSON, byte_token, compiled, mask_of, toy_vocabulary

SCHEMA = """{"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},
"required": ["name"], "additionalProperties": false}"""


def engines() -> dict[str, object]:
    memory = GrammarMemory(toy_vocabulary())
    return {
        "lark": compiled(LarkGrammar(JSON)),
        "schema_own": GrammarCompiler(memory, json_schema_backend="lark").compile(
            JsonSchemaGrammar(SCHEMA)
        ),
        "schema_llguidance": GrammarCompiler(memory).compile(JsonSchemaGrammar(SCHEMA)),
        "ambiguous": compiled(LarkGrammar('start: e\ne: e "+" e | "a"')),
    }


ENGINES = list(engines())


@pytest.fixture(params=ENGINES)
def grammar(request):
    return engines()[request.param]


def test_taking_back_and_going_again_gives_equal_masks(grammar):
    draw = random.Random(3)
    matcher = grammar.matcher()
    masks, tokens = [], []
    for _ in range(40):
        num_back = draw.choice([0, 0, 1, 2])
        if num_back <= len(tokens) and num_back:
            matcher.rollback(num_back)
            for _ in range(num_back):
                masks.pop()
                tokens.pop()
        allowed = mask_of(matcher).tolist()
        if len(masks) > len(tokens):
            assert masks[-1] == allowed
        else:
            masks.append(allowed)
        token = draw.choice(allowed)
        assert matcher.advance(token)
        tokens.append(token)
        if token == EOS:
            matcher.rollback(1)
            tokens.pop()
    matcher.rollback(len(tokens))
    replayed = grammar.matcher()
    for mask, token in zip(masks, tokens, strict=False):
        assert mask_of(matcher).tolist() == mask == mask_of(replayed).tolist()
        assert matcher.advance(token)
        assert replayed.advance(token)


def test_forks_are_independent(grammar):
    matcher = grammar.matcher()
    first = int(mask_of(matcher)[-1])
    twin = matcher.fork()
    assert matcher.advance(first)
    assert mask_of(twin).tolist() == mask_of(grammar.matcher()).tolist()
    assert twin.advance(first)
    assert mask_of(twin).tolist() == mask_of(matcher).tolist()
    twin.rollback(1)
    with pytest.raises(ValueError, match="cannot take back"):
        twin.rollback(1)


def test_a_refused_token_changes_nothing(grammar):
    matcher = grammar.matcher()
    before = mask_of(matcher).tolist()
    for token in (byte_token(ord("~")), EOS, -1, 10**6):
        assert not matcher.advance(token)
        assert matcher.error is None
        assert mask_of(matcher).tolist() == before
    assert not grammar.matcher().advance(byte_token(ord("~")))  # Nor without a mask.


def test_the_end(grammar):
    matcher = grammar.matcher()
    assert not matcher.can_end
    text = b'{"name": "a"}' if matcher.fork().advance(byte_token(ord("{"))) else b"a+a"
    for byte in text:
        assert not matcher.finished
        assert matcher.advance(byte_token(byte))
    assert matcher.can_end
    assert matcher.advance(EOS)
    assert matcher.finished
    assert matcher.can_end
    assert not matcher.advance(EOS)
    assert mask_of(matcher).tolist() == [EOS]
    matcher.rollback(2)
    assert not matcher.finished
    assert matcher.advance(byte_token(text[-1]))


def test_forced_bytes():
    matcher = engines()["schema_own"].matcher()
    assert matcher.forced_bytes(64) == b"{"
    for byte in b'{"n':
        assert matcher.advance(byte_token(byte))
    assert matcher.forced_bytes(64) == b'ame"'
    assert matcher.forced_bytes(2) == b"am"
    choice = compiled(LarkGrammar('start: "begin" ("a" | "b")')).matcher()
    assert choice.forced_bytes(64) == b"begin"
    assert compiled(RegexGrammar("a?")).matcher().forced_bytes(64) == b""
    assert compiled(RegexGrammar("[ab]c")).matcher().forced_bytes(64) == b""


def test_history_is_bounded():
    matcher = compiled(RegexGrammar("a*")).matcher()
    for _ in range(MAX_ROLLBACK + 50):
        assert matcher.advance(byte_token(ord("a")))
    with pytest.raises(ValueError, match="cannot take back"):
        matcher.rollback(MAX_ROLLBACK + 1)
    matcher.rollback(MAX_ROLLBACK)


def test_running_out_of_lexer_states_fails_this_matcher_alone():
    limits = GrammarLimits(max_lexer_states=12)
    memory = GrammarMemory(toy_vocabulary())
    grammar = TableGrammar(compile_tables(RegexGrammar("a{30}")), memory, limits)
    matcher = grammar.matcher()
    row = np.zeros(toy_vocabulary().row_len, dtype=np.uint32)
    for _ in range(20):
        matcher.fill_mask(row)
        matcher.advance(byte_token(ord("a")))
    assert matcher.error is not None
    assert "12 states" in matcher.error
    assert mask_of(matcher).tolist() == [EOS]
    assert not matcher.advance(byte_token(ord("a")))
    assert compiled(RegexGrammar("a{30}")).matcher().error is None


def test_no_token_fits():
    """A vocabulary may lack what a grammar needs: that request fails, with a reason."""
    vocabulary = Vocabulary([b"", b"a", b"b"], (EOS,), 3)
    grammar = TableGrammar(
        compile_tables(RegexGrammar("a(b|c)d")), GrammarMemory(vocabulary), GrammarLimits()
    )
    matcher = grammar.matcher()
    row = np.zeros(vocabulary.row_len, dtype=np.uint32)
    for token in (1, 2):
        matcher.fill_mask(row)
        assert matcher.advance(token)
    matcher.fill_mask(row)
    assert matcher.error == "no token of the vocabulary fits the grammar here"
    assert vocabulary.tokens_in(row).tolist() == [EOS]
