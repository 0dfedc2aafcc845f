"""Both backends against hand-checked values, and rewriting against an evaluation of schemas."""

from __future__ import annotations

import json
from functools import cache

import pytest

from jaxsgl.grammar.compiled import CompiledGrammar, GrammarMemory
from jaxsgl.grammar.compiler import GrammarCompiler, compile_tables
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.json_schema.document import References
from jaxsgl.grammar.json_schema.evaluate import accepts
from jaxsgl.grammar.json_schema.formats import PATTERNS
from jaxsgl.grammar.json_schema.rewrite import rewrite_schema
from jaxsgl.interface import JsonObjectGrammar, JsonSchemaGrammar, RegexGrammar
from tests.grammar.toy import compiled, takes, toy_vocabulary

BACKENDS = ("llguidance", "lark")


@cache
def compiler(backend) -> GrammarCompiler:
    return GrammarCompiler(GrammarMemory(toy_vocabulary()), json_schema_backend=backend)


def compile_schema(backend, schema) -> CompiledGrammar:
    return compiler(backend).compile(JsonSchemaGrammar(json.dumps(schema)))


TREE = {
    "$defs": {"node": {"type": "object", "required": ["v"], "additionalProperties": False,
                       "properties": {"v": {"type": "integer"},
                                      "next": {"$ref": "#/$defs/node"}}}},
    "$ref": "#/$defs/node",
}  # fmt: skip
# (schema, accepted, refused)
CASES = {
    "types": ({"type": ["string", "null"]}, ["a", "", None, 'q"\\\n'], [1, [], {}, True]),
    "anything": (True, [1.5e3, "a", [1, {"a": None}], {"b": []}, False], []),
    "enum": ({"enum": ["x", 1, None, {"a": [1]}]}, ["x", 1, None, {"a": [1]}], ["y", 2, {}]),
    "const": ({"const": {"a": "b"}}, [{"a": "b"}], [{"a": "c"}, {}]),
    "object": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}},
         "required": ["b"], "additionalProperties": False},
        [{"b": True}, {"a": -1, "b": False}],
        [{}, {"a": 1}, {"b": 1}, {"b": True, "c": 1}],
    ),
    "open object": (
        {"type": "object", "properties": {"aa": {"type": "null"}}},
        [{}, {"aa": None}, {"aa": None, "ab": 1, "a": 2}, {"aaa": 3, "b": {}}],
        [{"aa": 1}, []],
    ),
    "additional": (
        {"type": "object", "additionalProperties": {"type": "integer"}},
        [{}, {"x": 1, "y": 2}], [{"x": "1"}],
    ),
    "array": (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        [[1, 2], [1, 2, 3]], [[], [1], [1, 2, 3, 4], [1, "2"]],
    ),
    "tuple": (
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "items": False},
        [[], ["a"], ["a", None]], [["a", 1], ["a", None, 1], [1]],
    ),
    "lengths": ({"type": "string", "minLength": 1, "maxLength": 3}, ["a", "日本語", 'a"b'],
                ["", "abcd"]),
    "pattern": ({"type": "string", "pattern": "b+c?$"}, ["b", "abbc", "日b"], ["a", "bca", ""]),
    "anchored pattern": ({"type": "string", "pattern": "^a|b$"}, ["ax", "xb"], ["xay", "bx"]),
    "integers": ({"type": "integer", "minimum": -3, "exclusiveMaximum": 120},
                 [-3, 0, 99, 119], [-4, 120, 1000, 0.5]),
    "numbers": ({"type": "number", "exclusiveMinimum": 0, "maximum": 2}, [0.5, 1, 2, 1.75],
                [0, -1, 2.5, 3]),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "null"}}]},
              [1, [], [None]], ["a", [1]]),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}, [1, "a"],
              ["ab", None]),
    "allOf": ({"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}]}, [2, 4], [1, 5, "3"]),
    "recursion": (TREE, [{"v": 1}, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}],
                  [{}, {"v": 1, "next": {}}]),
    "not of listed values": (
        {"allOf": [{"enum": [1, "a", {"b": 2}]}, {"not": {"type": "string"}}]},
        [1, {"b": 2}], ["a", 2],
    ),
    "not of a type": ({"not": {"type": ["string", "object", "array"]}}, [1, None, True],
                      ["a", {}, []]),
    "dependencies": (
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
         "additionalProperties": False, "dependencies": {"a": ["b"]}},
        [{}, {"b": None}, {"a": None, "b": None}], [{"a": None}],
    ),
    "exclusive properties": (
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
         "additionalProperties": False, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": None}, {"b": None}], [{}, {"a": None, "b": None}],
    ),
    "date": ({"type": "string", "format": "date"}, ["2024-02-29"], ["2024-13-01", "x"]),
    "unknown format": ({"type": "string", "format": "topic"}, ["anything"], [1]),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_values(backend, name):
    schema, accepted, refused = CASES[name]
    grammar = compile_schema(backend, schema)
    for value in accepted:
        assert takes(grammar, json.dumps(value, ensure_ascii=False)), value
    for value in refused:
        assert not takes(grammar, json.dumps(value, ensure_ascii=False)), value


@pytest.mark.parametrize("name", CASES)
def test_rewriting_accepts_the_same_values(name):
    schema, accepted, refused = CASES[name]
    if "pattern" in name or name in ("date", "unknown format"):
        return
    rewritten = rewrite_schema(json.dumps(schema)).schema
    everything = [value for case in CASES.values() for value in (*case[1], *case[2])]
    for value in (*accepted, *refused, *everything):
        before = accepts(schema, value, References(schema))
        assert accepts(rewritten, value, References(rewritten)) == before, value


REFUSED = {
    "remote": ({"$ref": "http://example.com/x.json"}, "nothing is fetched"),
    "remote file": ({"$ref": "other.json#/a"}, "nothing is fetched"),
    "nowhere": ({"$ref": "#/$defs/x"}, "leads nowhere"),
    "itself": ({"$ref": "#"}, None),
    "no schema": (5, "a schema is an object"),
    "unsatisfiable": (False, None),
    "contradiction": ({"allOf": [{"type": "string"}, {"type": "null"}]}, None),
    "not": ({"not": {"pattern": "a"}}, "not"),
    "bad pattern": ({"type": "string", "pattern": "a(b"}, None),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "wrong kind": ({"type": "object", "properties": 5}, None),
    "overlapping oneOf": ({"oneOf": [{"const": 1}, {"type": "integer"}]}, "oneOf"),
    "no such type": ({"type": "text"}, None),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(backend, name):
    schema, complaint = REFUSED[name]
    with pytest.raises(GrammarError) as error:
        compile_schema(backend, schema)
    assert (complaint or "") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        "nul",
        '{"a": NaN}',
        '{"type": "string"} x',
        '{"allOf": [' * 10_000 + "{}" + "]}" * 10_000,
        '{"enum": ' + "[" * 10_000 + "]" * 10_000 + "}",
        '{"enum": [' + ",".join(f'"value {n}"' for n in range(10**5)) + "]}",
    ],
    ids=["open", "empty", "cut", "nan", "trailing", "deep", "deep value", "long"],
)
def test_bad_text_is_refused(backend, text):
    with pytest.raises(GrammarError):
        compiler(backend).compile(JsonSchemaGrammar(text))


def test_what_is_ignored_is_said():
    schema = {"type": "string", "format": "topic", "x-note": 1, "x-guidance": {"lenient": True}}
    for backend in BACKENDS:
        warnings = compile_schema(backend, schema).warnings
        assert "format 'topic' is ignored" in warnings
        assert "keyword 'x-guidance' is ignored" in warnings


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("pattern", "accepted", "refused"),
    [
        ('^[^"]*x$', ["x", "abx", "é\nx", "a\\x", "[^\tx"], ['a"x', '"x', "ay"]),
        (r"^\[[^\\\]/-]+\]$", ["[a]", "[日\n[]", '["]'], ["[\\]", "[a\\b]", "[/]", "[-]", "[]"]),
        (r'^\\[^"\n]$', [r"\a", r"\^"], ['\\"', "\\\n", "a"]),
    ],
)
def test_negated_sets(backend, pattern, accepted, refused):
    """What they leave out is refused however it is written."""
    values = {"type": "string", "pattern": pattern}
    names = {"patternProperties": {pattern: {}}, "type": "object", "additionalProperties": False}
    for schema, wrap in ((values, str), (names, lambda name: {name: 0})):
        grammar = compile_schema(backend, schema)
        for value in accepted:
            assert takes(grammar, json.dumps(wrap(value), ensure_ascii=False)), value
        for value in refused:
            assert not takes(grammar, json.dumps(wrap(value), ensure_ascii=False)), value


@pytest.mark.parametrize("backend", BACKENDS)
def test_white_space_is_bounded(backend):
    grammar = compile_schema(backend, {"type": "array"})
    assert takes(grammar, "[ \n  1,\n  2 ]")
    assert not takes(grammar, "[" + " " * 50 + "]")


def test_json_object():
    grammar = compiled(JsonObjectGrammar())
    for text in (
        "{}",
        '{ "a" : [ ] }',
        '{"a":1.5e-3,"b":{"c":[1,2,null]}}',
        '{"\\ud83d\\ude00":0}',
    ):
        assert takes(grammar, text), text
    for text in ("[]", '{"a":01}', "{" + " " * 50, '{"\\ud83d": 1}', "{}{}", '{"a": 1,}'):
        assert not takes(grammar, text), text


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date-time", ["2024-02-29T23:59:60Z", "1990-01-01t00:00:00.5+01:00"], ["2024-02-29"]),
        ("time", ["10:00:00Z"], ["10:00", "24:00:00Z"]),
        ("duration", ["P1Y2M3DT4H", "PT5M", "P2W"], ["P", "1Y", "PT"]),
        ("email", ["a.b@c.example"], ["a@", "@b", "a b@c"]),
        ("hostname", ["a-b.c"], ["-a", "a..b"]),
        ("ipv4", ["255.0.1.99"], ["256.0.0.1", "1.2.3"]),
        ("ipv6", ["::", "1::8", "2001:db8::1:0:0:1", "::ffff:1.2.3.4"], [":", "1:2", "::1::"]),
        ("uuid", ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08"]),
        ("uri", ["http://a.b/c?d=e#f", "urn:x:y"], ["a b", "//x"]),
    ],
)
def test_formats(name, right, wrong):
    grammar = compiled(RegexGrammar(PATTERNS[name]))
    assert [text for text in right if not takes(grammar, text)] == []
    assert [text for text in wrong if takes(grammar, text)] == []


def test_a_schema_of_many_values_compiles_to_little():
    tables = compile_tables(JsonSchemaGrammar(json.dumps({"enum": list(range(500))})))
    assert len(tables.parser.actions) < 10
