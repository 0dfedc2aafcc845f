"""Answers that are led to an end before their tokens run out."""

import json
import random

import jsonschema
import numpy as np
import pytest
from lark import Lark

from jaxsgl.grammar.closing import MARGIN_LEN, Closer, Steering
from jaxsgl.grammar.compiled import GrammarMemory
from jaxsgl.grammar.compiler import GrammarCompiler
from jaxsgl.grammar.constraint import Constraint
from jaxsgl.grammar.json_schema.hints import SchemaHints, schema_hints
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


PATTERNS = (
    "[0-9]{3}:[0-9]{2}",
    "^(http)|(https)://(.*)$",
    r"[\w.-]+@([\w.-]+\.)+\w+",
    r"^[a-z]+@[a-z]+\.org$",
    r'^"\w*" \\$',
)
RECORDS = {
    "type": "object",
    "properties": {
        "note": {"type": "string"},
        "records": {"type": "array", "items": {"$ref": "#/$defs/record"}},
    },
    "required": ["records"],
    "additionalProperties": False,
    "$defs": {
        "record": {
            "type": "object",
            "properties": {
                "comment": {"type": "string"},
                "department": {"type": "integer"},
                "inventory_number": {"type": "integer"},
                "last_inspection": {"type": "string", "format": "date"},
                "owner": {"enum": ["nobody in particular", "somebody"]},
            },
            "required": ["department", "inventory_number", "last_inspection", "owner"],
            "additionalProperties": False,
        }
    },
}


def draw_answer(
    spec: GrammarSpec, max_tokens: int, seed: int, *, steered: bool = True
) -> tuple[bytes, bool]:
    """A random answer of at most `max_tokens`, and whether it came to an end."""
    vocabulary = toy_vocabulary()
    grammar = COMPILERS["lark" if seed % 2 else "llguidance"].compile(spec)
    steering = None
    if steered:
        steering = Steering(Closer(vocabulary), vocabulary, max_tokens, grammar.largest_part)
    constraint = Constraint(grammar.matcher(), vocabulary, max_tokens=max_tokens, steering=steering)
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


@pytest.mark.parametrize(
    "string",
    [
        *({"pattern": pattern} for pattern in PATTERNS),
        {"format": "email"},
        {"format": "date-time"},
        {"minLength": 70},
    ],
    ids=str,
)
def test_strings_of_a_form_are_completed(string):
    """Single bytes do not tell how: most are allowed, and none leads to the end."""
    schema = {"type": "array", "items": {"type": "string", **string}, "minItems": 1}
    spec = JsonSchemaGrammar(json.dumps(schema))
    for seed in range(6):
        text, ended = draw_answer(spec, 140, seed)
        assert ended, text
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("backend", COMPILERS)
def test_nothing_is_begun_that_there_is_no_room_for(backend):
    """One token begins a record, which takes a hundred."""
    vocabulary = toy_vocabulary()
    grammar = COMPILERS[backend].compile(JsonSchemaGrammar(json.dumps(RECORDS)))
    begin = vocabulary.spell(b'{"note": "%b", "records": [' % (b"ab" * 200))
    allowed: list[list[bytes]] = []
    for room in (160, 60):
        max_tokens = len(begin) + room
        steering = Steering(Closer(vocabulary), vocabulary, max_tokens, grammar.largest_part)
        matcher = grammar.matcher()
        constraint = Constraint(matcher, vocabulary, max_tokens=max_tokens, steering=steering)
        for answer_len, token in enumerate(begin):
            constraint.take(answer_len, token)
        constraint.prepare()
        row = np.zeros(vocabulary.row_len, np.uint32)
        assert constraint.copy_mask(len(begin), row)
        allowed.append([vocabulary.token_bytes[token] for token in vocabulary.tokens_in(row)])
    assert b"{" in allowed[0] and b"]" in allowed[0]
    assert allowed[1] == [b"]"]


def test_an_end_leaves_out_what_may_be_left_out():
    matcher = COMPILERS["llguidance"].compile(JsonSchemaGrammar(json.dumps(RECORDS))).matcher()
    for token in toy_vocabulary().spell(b'{"records": [{'):
        assert matcher.advance(token)
    tokens = Closer(toy_vocabulary()).closing(matcher)
    assert tokens is not None
    rest = b"".join(toy_vocabulary().token_bytes[token] for token in tokens)
    (record,) = json.loads(b'{"records": [{' + rest)["records"]
    assert list(record) == RECORDS["$defs"]["record"]["required"]


def test_keywords_of_the_wrong_kind_give_no_hints():
    for schema in (
        {"type": "array", "minItems": "many", "items": {"type": "string"}},
        {"properties": {"a": {"type": "string", "pattern": ["a"]}}},
        {"properties": {"a": {"$ref": "elsewhere"}}},
    ):
        assert schema_hints({"type": "object", "properties": {"a": schema}}) == SchemaHints()


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
    for steering in (None, Steering(Closer(vocabulary), vocabulary, 100)):
        matcher = COMPILERS["lark"].compile(JsonObjectGrammar()).matcher()
        constraint = Constraint(matcher, vocabulary, max_tokens=100, steering=steering)
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
