"""Grammars in requests, in every field that may bring one, and the check of a grammar."""

from __future__ import annotations

from typing import Any

import pytest

from jaxsgl.interface import (
    ChoiceGrammar,
    EbnfGrammar,
    GrammarSpec,
    InvalidGrammar,
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
)
from tests.server.conftest import Served
from tests.server.test_openai_routes import CHAT, TEXT, chat

CHECK = "/v1/grammars/check"
SCHEMA = {"b": 1, "a": {"$ref": "#"}}
SCHEMA_TEXT = '{"b": 1, "a": {"$ref": "#"}}'

FIELDS: list[tuple[dict[str, Any], GrammarSpec | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, JsonObjectGrammar()),
    (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        JsonSchemaGrammar(SCHEMA_TEXT),
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
            }
        },
        JsonSchemaGrammar(SCHEMA_TEXT),
    ),
    (
        {"response_format": {"type": "grammar", "syntax": "lark", "grammar": 'start: "a"'}},
        LarkGrammar('start: "a"'),
    ),
    (
        {"response_format": {"type": "grammar", "syntax": "ebnf", "grammar": 'root ::= "a"'}},
        EbnfGrammar('root ::= "a"'),
    ),
    ({"response_format": {"type": "regex", "pattern": "a+"}}, RegexGrammar("a+")),
    ({"regex": "a+"}, RegexGrammar("a+")),
    ({"ebnf": 'root ::= "a"'}, EbnfGrammar('root ::= "a"')),
    ({"lark": 'start: "a"'}, LarkGrammar('start: "a"')),
    ({"choice": ["a", "b"]}, ChoiceGrammar(("a", "b"))),
    ({"json_schema": SCHEMA}, JsonSchemaGrammar(SCHEMA_TEXT)),
    ({"json_schema": SCHEMA_TEXT}, JsonSchemaGrammar(SCHEMA_TEXT)),
    ({"structured_outputs": {"json": SCHEMA}}, JsonSchemaGrammar(SCHEMA_TEXT)),
    ({"structured_outputs": {"json_object": True}}, JsonObjectGrammar()),
    ({"structured_outputs": {"regex": "a+"}}, RegexGrammar("a+")),
    ({"structured_outputs": {"choice": ["a"]}}, ChoiceGrammar(("a",))),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}}, EbnfGrammar('root ::= "a"')),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, LarkGrammar('start: "a"')),
    ({"regex": None, "response_format": None, "json_schema": None, "ebnf": None}, None),
]


@pytest.mark.parametrize(("fields", "grammar"), FIELDS)
async def test_every_field_that_brings_a_grammar(
    served: Served, fields: dict[str, Any], grammar: GrammarSpec | None
) -> None:
    for route, body in ((CHAT, chat("a")), (TEXT, {"prompt": "a", "max_tokens": 2, "n": 2})):
        assert (await served.post(route, body | fields))[0] == 200
    assert [request.sampling.grammar for request in served.engine.requests] == [grammar] * 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"regex": "a", "ebnf": "b"}, "ebnf"),
        ({"response_format": {"type": "json_object"}, "choice": ["a"]}, "choice"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"response_format": {"type": "grammar"}}, "response_format.grammar"),
        (
            {"response_format": {"type": "grammar", "grammar": "x", "syntax": "yacc"}},
            "response_format.syntax",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": None}}},
            "response_format.json_schema.schema",
        ),
        ({"regex": 5}, "regex"),
        ({"choice": "a"}, "choice"),
    ],
)
async def test_what_brings_none_or_two_is_refused(
    served: Served, fields: dict[str, Any], param: str
) -> None:
    status, reply = await served.post(CHAT, chat("a") | fields)
    assert status == 400
    assert reply["error"]["type"] == "invalid_request_error"
    assert reply["error"]["param"] == param
    assert served.engine.requests == []


async def test_a_grammar_that_the_engine_refuses(served: Served) -> None:
    served.engine.refusal = InvalidGrammar("terminal A: no (line 3)")
    for stream in (False, True):
        status, reply = await served.post(CHAT, chat("a") | {"regex": "(", "stream": stream})
        assert status == 400
        assert reply["error"] == {
            "message": "terminal A: no (line 3)",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_grammar",
        }


async def test_the_check(served: Served) -> None:
    status, reply = await served.post(CHECK, {"regex": "a+", "prefix": "aé"})
    assert status == 200
    assert served.engine.checked == [(RegexGrammar("a+"), "aé".encode())]
    assert reply == {
        "object": "grammar.check",
        "engine": "lark",
        "compile_ms": 1.235,
        "terminals": [{"name": "A", "pattern": "a+"}],
        "conflicts": [],
        "warnings": ["nothing is real"],
        "prefix_taken_bytes": 2,
        "prefix_fits": False,
        "can_end": True,
        "num_allowed_tokens": 2,
        "allowed_tokens": [
            {"id": 10, "text": "", "bytes": []},
            {"id": 200, "text": "\ufffd", "bytes": [200]},
        ],
        "forced": "é",
        "forced_bytes": [195, 169],
        "error": None,
    }


async def test_what_the_check_refuses(served: Served) -> None:
    for body, param in (
        ({}, None),
        ({"regex": "a", "prefix": 5}, "prefix"),
        ({"regex": "a", "messages": []}, "messages"),
    ):
        status, reply = await served.post(CHECK, body)
        assert (status, reply["error"]["param"]) == (400, param)
    status, _ = await served.post(CHECK, {"regex": "a", "model": "other"})
    assert status == 404
    served.engine.refusal = InvalidGrammar("no")
    status, reply = await served.post(CHECK, {"regex": "a"})
    assert (status, reply["error"]["code"]) == (400, "invalid_grammar")
    served.engine.ready = False
    assert (await served.post(CHECK, {"regex": "a"}))[0] == 503
