"""Masks against trying every token, in every state that random walks reach."""

from __future__ import annotations

import random

import numpy as np
import pytest
from lark import Lark

from jaxsgl.grammar.compiled import GrammarMemory, TableGrammar
from jaxsgl.grammar.compiler import compile_tables
from jaxsgl.grammar.limits import DEFAULT_LIMITS
from jaxsgl.grammar.tables import decode_tables, encode_tables
from jaxsgl.interface import (
    ChoiceGrammar,
    EbnfGrammar,
    GrammarSpec,
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
)
from tests.grammar.toy import EOS, SAMPLES, compiled, lark_takes, mask_of, toy_vocabulary

SCHEMA = """{"type": "object", "additionalProperties": false, "required": ["a"], "properties":
{"a": {"enum": ["x", "xy", 1, null, {"x": 1}]}, "if": {"type": ["integer", "number"], "minimum": 3},
"foo": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "b": {"maxLength": 3}}}"""

SPECS: dict[str, GrammarSpec] = {
    **{name: LarkGrammar(text) for name, text in SAMPLES.items()},
    "ambiguous": LarkGrammar('start: e\ne: e "+" e | "a" | "ab" | "b"'),
    "reduce_reduce": LarkGrammar('start: a | b\na: "a" "b"* "x"?\nb: "a" "b"? "y"'),
    "right_recursive": LarkGrammar('start: "a" start | "b"'),
    "late": LarkGrammar(
        'start: (N | DOTS | F | W)+\nN: /\\d+/\nDOTS: ".."\nF: /\\d+\\.\\d+x/\nW: / +(?!a)/'
    ),
    "late_ignored": LarkGrammar('start: "a" ("/" "a")*\n%ignore /\\/\\*.*?\\*\\//\n%ignore " "'),
    "case": LarkGrammar('start: (A | "select"i)+\nA: /[aé日]+/i\n%ignore " "'),
    "regex": RegexGrammar(r"(?=.*\d)[a-f\d]{2,5}(true|é+)?"),
    "choice": ChoiceGrammar(("true", "tru", "null", "日本語", "é", "")),
    "json_object": JsonObjectGrammar(),
    "json_schema": JsonSchemaGrammar(SCHEMA),
    "ebnf": EbnfGrammar('root ::= item ("," " "? item)* \nitem ::= [a-z]+ | "(" root ")" | "if"'),
}


def allowed_one_by_one(matcher) -> list[int]:
    """What a fork that has made no mask takes."""
    return [
        token for token in range(len(toy_vocabulary().token_bytes)) if matcher.fork().advance(token)
    ]


@pytest.mark.parametrize("name", SPECS)
def test_masks_are_exact(name):
    grammar = compiled(SPECS[name])
    draw = random.Random(name)
    for _ in range(4):
        matcher = grammar.matcher()
        for _ in range(12):
            expected = allowed_one_by_one(matcher)
            allowed = mask_of(matcher).tolist()
            assert allowed == expected
            assert (EOS in allowed) == matcher.can_end
            assert matcher.error is None
            going_on = [token for token in allowed if token != EOS]
            if not going_on:
                assert matcher.finished
                break
            # Long tokens lead to more states than bytes do.
            long = [token for token in going_on if token > 256] or going_on
            assert matcher.advance(draw.choice(draw.choice([long, going_on])))


def walk(grammar, draw: random.Random, max_tokens: int) -> str | None:
    """Draw tokens under the mask until the text ends; None if it does not. Fails at a dead end."""
    vocabulary = toy_vocabulary()
    matcher = grammar.matcher()
    text = b""
    for step in range(max_tokens):
        allowed = mask_of(matcher)
        assert matcher.error is None, (text, matcher.error)
        assert len(allowed), text
        if allowed[0] == EOS and (len(allowed) == 1 or draw.random() < step / max_tokens):
            assert matcher.advance(EOS)
            return text.decode()
        token = int(draw.choice(allowed[allowed != EOS]))
        text += vocabulary.token_bytes[token]
        assert matcher.advance(token)
    return None


def check_walks(name: str, num_walks: int) -> int:
    """Return how many of the walks ended; all of their texts are Lark's."""
    parser = Lark(SAMPLES[name], parser="lalr")
    grammar = compiled(LarkGrammar(SAMPLES[name]))
    draw = random.Random(name)
    texts = [walk(grammar, draw, 60) for _ in range(num_walks)]
    ended = [text for text in texts if text is not None]
    assert [text for text in ended if not lark_takes(parser, text)] == []
    return len(ended)


@pytest.mark.parametrize("name", SAMPLES)
def test_random_walks_end_in_texts_of_lark(name):
    assert check_walks(name, 15) > 0


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLES)
def test_many_random_walks_end_in_texts_of_lark(name):
    assert check_walks(name, 2000) > 50


def test_tables_survive_the_wire():
    for spec in (SPECS["lark_json"], SPECS["late"], SPECS["json_schema"]):
        tables = compile_tables(spec)
        memory = GrammarMemory(toy_vocabulary())
        there = TableGrammar(decode_tables(encode_tables(tables)), memory, DEFAULT_LIMITS)
        here = compiled(spec)
        draw = random.Random(1)
        one, other = here.matcher(), there.matcher()
        for _ in range(10):
            allowed = mask_of(one)
            assert mask_of(other).tolist() == allowed.tolist()
            token = int(draw.choice(allowed))
            assert one.advance(token) == other.advance(token)


def test_one_grammar_serves_with_hardly_any_memory():
    """Whatever is evicted is made again, and the same."""
    tight = compiled(SPECS["json"], max_bytes=4000)
    roomy = compiled(SPECS["json"])
    draw = random.Random(5)
    one, other = tight.matcher(), roomy.matcher()
    for _ in range(40):
        allowed = mask_of(other)
        assert mask_of(one).tolist() == allowed.tolist()
        token = int(draw.choice(allowed[allowed != EOS]))
        assert one.advance(token)
        assert other.advance(token)


def test_masks_cover_logits_wider_than_the_vocabulary():
    vocabulary = toy_vocabulary()
    row = np.full(vocabulary.row_len, 0xFFFFFFFF, dtype=np.uint32)
    compiled(RegexGrammar("(?s).*")).matcher().fill_mask(row)
    allowed = vocabulary.tokens_in(row).tolist()
    assert max(allowed) < len(vocabulary.token_bytes)
    assert [token for token in allowed if not vocabulary.token_bytes[token]] == [EOS]


def test_sharing_between_grammars_changes_nothing():
    memory = GrammarMemory(toy_vocabulary())
    pairs = [
        ('start: "a" S\nS: /"[^"]*"/', 'start: S "b"\nS: /"[^"]*"/'),
        ("start: N\nN: /[0-9]+/", 'start: N "x"\nN: /[0-9]+/'),
    ]
    for texts in pairs:
        for text in texts:
            shared = TableGrammar(compile_tables(LarkGrammar(text)), memory, DEFAULT_LIMITS)
            alone = compiled(LarkGrammar(text))
            draw = random.Random(2)
            one, other = shared.matcher(), alone.matcher()
            for _ in range(12):
                allowed = mask_of(other)
                assert mask_of(one).tolist() == allowed.tolist()
                token = int(draw.choice(allowed))
                assert one.advance(token)
                assert other.advance(token)
                if token == EOS:
                    break
