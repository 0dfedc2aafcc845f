"""Answers that are led to an end before their tokens run out."""

import json
import random

import jsonschema
import numpy as np
import pytest
from lark import Lark

from jaxsgl.grammar.closing import MARGIN_LEN, Closer
from jaxsgl.grammar.compiled import GrammarMemory
from jaxsgl.grammar.compiler import GrammarCompiler
from jaxsgl.grammar.constraint import Constraint
from jaxsgl.interface import GrammarSpec, JsonObjectGrammar, JsonSchemaGrammar, LarkGrammar
from tests.grammar.toy import CALCULATOR, EOS, SAMPLES, lark_takes, toy_vocabulary

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "born": {"type": "string", "format": "date"},
        "score": {"type": "number"},
        "kind": {"enum": ["one", "two", "three hundred"]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        "more": {"type": "object", "properties": {"deep": {"type": "array", "items": {}}}},
    },
    "required": ["name", "born", "score", "kind", "tags"],
}
TREE = {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"type": "integer"}}}
COMPILERS = {
    backend: GrammarCompiler(GrammarMemory(toy_vocabulary()), json_schema_backend=backend)
    for backend in ("llguidance", "lark")
}


def draw_answer(
    spec: GrammarSpec, max_tokens: int, seed: int, *, steered: bool = True
) -> tuple[bytes, bool]:
    """A random answer of at most `max_tokens`, and whether it came to an end."""
    vocabulary = toy_vocabulary()
    matcher = COMPILERS["lark" if seed % 2 else "llguidance"].compile(spec).matcher()
    closer = Closer(vocabulary) if steered else None
    constraint = Constraint(matcher, vocabulary, max_tokens=max_tokens, closer=closer)
    drawing, text = random.Random(seed), b""
    row = np.zeros(vocabulary.row_len, np.uint32)
    for answer_len in range(max_tokens):
        if not constraint.try_prepare():
            constraint.prepare()
        assert constraint.failed_len < 0, constraint.failure
        if constraint.ended_len == answer_len:
            return text, True
        assert constraint.copy_mask(answer_len, row)
        token = drawing.choice(vocabulary.tokens_in(row).tolist())
        if token == EOS:
            return text, True
        text += vocabulary.token_bytes[token]
        constraint.take(answer_len, token)
    return text, False


def test_any_json_object_is_completed():
    for seed in range(16):
        text, ended = draw_answer(JsonObjectGrammar(), 50, seed)
        assert ended
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(("schema", "max_tokens"), [(SCHEMA, 160), (TREE, 60)])
def test_schemas_are_completed(schema, max_tokens):
    checker = jsonschema.Draft202012Validator(schema)
    num_ended = 0
    for seed in range(16):
        text, ended = draw_answer(JsonSchemaGrammar(json.dumps(schema)), max_tokens, seed)
        num_ended += ended
        if ended:
            checker.validate(json.loads(text))
    assert num_ended == 16


@pytest.mark.parametrize("name", ["calculator", "turtle", "lark_json"])
def test_lark_grammars_are_completed(name):
    parser = Lark(SAMPLES[name], parser="lalr")
    for seed in range(15):
        text, ended = draw_answer(LarkGrammar(SAMPLES[name]), 60, seed)
        assert ended
        assert lark_takes(parser, text.decode())


def test_without_it_they_are_cut():
    ended = [draw_answer(LarkGrammar(CALCULATOR), 20, seed, steered=False)[1] for seed in range(20)]
    assert not all(ended)


def test_it_goes_for_the_end_only_when_it_must():
    """Until then every token is allowed that the grammar allows."""
    vocabulary = toy_vocabulary()
    masks = []
    for closer in (None, Closer(vocabulary)):
        matcher = COMPILERS["lark"].compile(JsonObjectGrammar()).matcher()
        constraint = Constraint(matcher, vocabulary, max_tokens=100, closer=closer)
        taken = vocabulary.spell(b'{"ab": [1, 2, "abababababababababababab')
        rows = []
        for answer_len in range(60):
            constraint.prepare()
            row = np.zeros(vocabulary.row_len, np.uint32)
            assert constraint.copy_mask(answer_len, row)
            rows.append(row.tolist())
            constraint.take(answer_len, (taken + vocabulary.spell(b"a") * 60)[answer_len])
        masks.append(rows)
    assert masks[0] == masks[1]


def test_what_never_ends_is_left_alone():
    text, ended = draw_answer(LarkGrammar('start: "a" start'), 30, 1)
    assert not ended and set(text) == {ord("a")}


def test_closings():
    closer = Closer(toy_vocabulary())
    matcher = COMPILERS["lark"].compile(JsonObjectGrammar()).matcher()

    def closing() -> bytes:
        tokens = closer.closing(matcher)
        assert tokens is not None
        return b"".join(toy_vocabulary().token_bytes[token] for token in tokens)

    for text, expected in (
        (b"", b"{}"),
        (b'{"a": [[tru', b"e]]}"),
        (b'": {"b', None),
    ):
        for token in toy_vocabulary().spell(text):
            if not matcher.advance(token):
                assert expected is None
                break
        else:
            assert closing() == expected
    assert MARGIN_LEN > 0
