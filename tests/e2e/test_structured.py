"""Structured output as a client meets it: SmolLM2 behind a real server."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import jsonschema
import pytest
from lark import Lark
from openai import AsyncOpenAI

from tests.e2e.http_client import HttpClient
from tests.e2e.server_process import ServerProcess
from tests.grammar.toy import slow_grammar

CHAT = "/v1/chat/completions"
BOUND_S = 60.0
"""What a refusal may take on a busy machine: the limit of 5 s, and a worker's start."""

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee", "water"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
CALCULATION = """
start: sum
?sum: product (("+" | "-") product)*
?product: atom (("*" | "/") atom)*
?atom: NUMBER | "(" sum ")"
NUMBER: /[0-9]{1,3}/
"""


def question(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 80,
        "temperature": 1.0,
        "seed": 7,
        **fields,
    }


async def ask(client: HttpClient, text: str, **fields: Any) -> list[tuple[str, str]]:
    """(content, finish reason) of every choice."""
    status, reply = await client.post(CHAT, question(text, **fields))
    assert status == 200, reply
    return [(choice["message"]["content"], choice["finish_reason"]) for choice in reply["choices"]]


SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}


async def test_a_schema(client: HttpClient):
    answers = await ask(client, "Describe a person.", response_format=SCHEMA_FORMAT, n=4)
    finished = [text for text, why in answers if why == "stop"]
    assert finished
    for text in finished:
        jsonschema.validate(json.loads(text), PERSON)
    assert len({text for text, _ in answers}) > 1


async def test_answers_that_are_led_to_their_end(client: HttpClient):
    fields = {"response_format": SCHEMA_FORMAT, "n": 4, "temperature": 1.5, "max_tokens": 45}
    answers = await ask(client, "Describe a person.", strict_complete=True, **fields)
    for text, why in answers:
        assert why == "stop"
        jsonschema.validate(json.loads(text), PERSON)
    status, reply = await client.post(CHAT, question("x", strict_complete=True))
    assert (status, reply["error"]["param"]) == (400, "strict_complete")


async def test_any_json_object(client: HttpClient):
    for fields in (
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_object", "schema": PERSON}},
    ):
        ((text, why),) = await ask(client, "Describe a person in JSON.", temperature=0, **fields)
        assert text.lstrip().startswith("{")
        if why == "stop":
            assert isinstance(json.loads(text), dict)


async def test_a_pattern(client: HttpClient):
    answers = await ask(client, "When is it?", regex=r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}Z", n=3)
    for text, why in answers:
        assert why == "stop"
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}Z", text)


@pytest.mark.parametrize("ignore_eos", [False, True])
async def test_choices_and_the_other_parameters(client: HttpClient, ignore_eos: bool):
    answers = await ask(
        client, "Which is it?", choice=["red wine", "red", "green"], n=6, temperature=2.0,
        frequency_penalty=1.0, presence_penalty=0.5, repetition_penalty=1.2, min_p=0.01,
        logit_bias={"0": 5}, ignore_eos=ignore_eos,
    )  # fmt: skip
    assert {text for text, _ in answers} <= {"red wine", "red", "green"}
    assert {why for _, why in answers} == {"stop"}


async def test_a_lark_grammar(client: HttpClient):
    parser = Lark(CALCULATION, parser="lalr")
    response_format = {"type": "grammar", "syntax": "lark", "grammar": CALCULATION}
    answers = await ask(client, "What is 12 times 3 plus 4?", response_format=response_format, n=4)
    finished = [text for text, why in answers if why == "stop"]
    for text in finished:
        parser.parse(text)


async def test_ebnf_and_vllms_field(client: HttpClient):
    ebnf = 'root ::= ("yes" | "no") [.!]'
    for fields in ({"ebnf": ebnf}, {"structured_outputs": {"grammar": ebnf}}):
        ((text, why),) = await ask(client, "Is it?", **fields)
        assert re.fullmatch("(yes|no)[.!]", text) and why == "stop"


async def test_log_probabilities_are_of_what_may_come(client: HttpClient):
    status, reply = await client.post(
        CHAT, question("Is it?", choice=["yes", "no"], logprobs=True, top_logprobs=5)
    )
    assert status == 200
    entries = reply["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) in ("yes", "no")
    for entry in entries:
        assert entry["logprob"] <= 0
        assert all(top["logprob"] > -1000 for top in entry["top_logprobs"])


async def test_streams_through_the_openai_client(server: ServerProcess):
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openai:
        stream = await openai.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "Describe a person."}],
            response_format=SCHEMA_FORMAT,  # pyright: ignore
            max_tokens=200,
            temperature=0,
            stream=True,
        )
        text, why = "", None
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            why = chunk.choices[0].finish_reason or why
    assert why in ("stop", "length")
    if why == "stop":
        jsonschema.validate(json.loads(text), PERSON)
    assert text.lstrip().startswith("{")


async def test_constrained_and_free_answers_side_by_side(client: HttpClient):
    alone = await client.capital()
    *constrained, free = await asyncio.gather(
        *(ask(client, f"Number {n}", regex="[0-9]{30}") for n in range(3)), client.capital()
    )
    assert free == alone
    for ((text, why),) in constrained:
        assert re.fullmatch("[0-9]{30}", text) and why == "stop"


async def test_the_same_seed_gives_the_same_answer(client: HttpClient):
    first, second = [
        await ask(client, "Describe a person.", response_format=SCHEMA_FORMAT) for _ in range(2)
    ]
    assert first == second


async def test_a_grammar_that_never_ends_runs_to_the_limit(client: HttpClient):
    ((text, why),) = await ask(client, "Go on.", lark='start: "ab" start', max_tokens=20)
    assert why == "length" and set(text) == {"a", "b"}


SLOW_GRAMMAR = slow_grammar()

BAD: dict[str, dict[str, Any]] = {
    "a group that is not closed": {"regex": "(a"},
    "a back-reference": {"regex": r"(a)\1"},
    "nested repetitions": {"regex": "(a{1000}){1000}"},
    "no text at all": {"regex": r"[^\s\S]"},
    "an unknown rule": {"lark": "start: nothing"},
    "an import from disk": {"lark": "%import .secret.x\nstart: x"},
    "minutes of work": {"lark": SLOW_GRAMMAR},
    "a remote reference": {"json_schema": {"$ref": "http://127.0.0.1:1/schema"}},
    "a reference to nothing": {"json_schema": {"$ref": "#/$defs/none"}},
    "a deep schema": {"json_schema": '{"items": ' * 10_000 + "{}" + "}" * 10_000},
    "a schema of many values": {"json_schema": {"enum": list(range(100_000))}},
    "a schema that is no JSON": {"json_schema": "{"},
    "a schema that nothing fulfils": {"json_schema": {"allOf": [{"type": "null"}, {"const": 1}]}},
    "an unsupported keyword": {"json_schema": {"type": "array", "uniqueItems": True}},
    "no choices": {"choice": []},
    "no EBNF": {"ebnf": "root = a"},
}


async def test_bad_grammars_are_refused_while_others_are_served(client: HttpClient):
    """Each a 400 in bounded time, with OpenAI's body, while another answer streams on."""
    story = question("Tell a story.", max_tokens=250, ignore_eos=True)
    streaming = asyncio.create_task(client.stream_answer(CHAT, story))
    for name, fields in BAD.items():
        begin_s = time.monotonic()
        status, reply = await client.post(CHAT, question("x", **fields))
        assert status == 400, (name, reply)
        error = reply["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_grammar"), name
        assert error["message"] and "\n" not in error["message"], name
        assert time.monotonic() - begin_s < BOUND_S, name
    text, num_tokens = await streaming
    assert text and num_tokens == 250


async def test_a_catastrophic_pattern_is_served(client: HttpClient):
    """Nothing backtracks here, so there is nothing to refuse."""
    ((text, _),) = await ask(client, "Go.", regex="(a+)+$", max_tokens=8)
    assert set(text) == {"a"}


async def test_recursive_schemas_are_served(client: HttpClient):
    tree = {
        "type": "object",
        "properties": {"left": {"$ref": "#"}, "value": {"type": "integer"}},
        "required": ["value"],
        "additionalProperties": False,
    }
    ((text, why),) = await ask(client, "A tree.", json_schema=tree, temperature=0)
    if why == "stop":
        jsonschema.validate(json.loads(text), tree)


async def test_many_schemas(client: HttpClient):
    """Each seen once; what is kept of them is bounded."""

    async def one(n: int) -> None:
        ((text, why),) = await ask(client, "x", json_schema={"const": f"n{n}"}, max_tokens=40)
        assert (json.loads(text), why) == (f"n{n}", "stop")

    for first in range(0, 64, 16):
        await asyncio.gather(*(one(first + n) for n in range(16)))


async def test_a_client_that_leaves_while_its_grammar_is_compiled(client: HttpClient):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await client.post(CHAT, question("x", lark=SLOW_GRAMMAR + "\n// left"))
    ((text, _),) = await ask(client, "x", choice=["fine"])
    assert text == "fine"


async def test_the_check_of_a_grammar(client: HttpClient):
    status, report = await client.post(
        "/v1/grammars/check", {"lark": 'start: "yes" | "no" "!"*', "prefix": "n"}
    )
    assert status == 200
    assert (report["forced"], report["can_end"], report["engine"]) == ("o", False, "lark")
    assert report["prefix_fits"] and report["compile_ms"] > 0
    status, report = await client.post(
        "/v1/grammars/check", {"json_schema": {"type": "string", "format": "topic"}}
    )
    assert report["warnings"] == ["format 'topic' is ignored"]
    status, reply = await client.post("/v1/grammars/check", {"lark": "start: ("})
    assert (status, reply["error"]["code"]) == (400, "invalid_grammar")
