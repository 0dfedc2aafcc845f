"""The strict decoder: what it refuses, and which field it names."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsgl.interface import InvalidRequest
from server.json_body import decode_json
from server.schema import CHAT_DECODER, COMPLETION_DECODER

MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"prompt":"a"} x',
        b'{"prompt":"a"}{"prompt":"b"}',
        b'{"prompt":"a",}',
        b"\xef\xbb\xbf" + b'{"prompt":"a"}',
        '{"prompt":"a"}'.encode("utf-16"),
        b'{"prompt":"\xff"}',
        b'{"prompt":"\x00"}',
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"\\udc00\\ud800"}',
        b'{"prompt":"a","temperature":NaN}',
        b'{"prompt":"a","temperature":Infinity}',
        b'{"prompt":"a","temperature":-Infinity}',
    ],
)
def test_not_json(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON") as caught:
        decode_json(data, COMPLETION_DECODER)
    assert caught.value.param is None


@pytest.mark.parametrize("data", [b"null", b"[]", b"1", b'"text"'])
def test_not_an_object(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"body: Expected `object`"):
        decode_json(data, COMPLETION_DECODER)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (b'"temperature":1e999', "temperature"),
        (b'"temperature":"0.7"', "temperature"),
        (b'"temperature":true', "temperature"),
        (b'"max_tokens":1.5', "max_tokens"),
        (b'"max_tokens":' + b"9" * 5000, "max_tokens"),
        (b'"max_completion_tokens":0', "max_completion_tokens"),
        (b'"n":0', "n"),
        (b'"n":-1', "n"),
        (b'"n":1000000000', "n"),
        (b'"stop":5', "stop"),
        (b'"stop":[5]', "stop[0]"),
        (b'"logit_bias":{"a":1}', "logit_bias"),
        (b'"logit_bias":{"5":"1"}', "logit_bias[...]"),
        (b'"top_logprobs":21', "top_logprobs"),
        (b'"priority":4294967296', "priority"),
        (b'"response_format":{"type":"structural_tag"}', "response_format.type"),
        (b'"tools":[5]', "tools[0]"),
        (b'"stream_options":{"x":1}', "stream_options.x"),
        (b'"no_such_field":null', "no_such_field"),
    ],
)
def test_bad_field_is_named(fields: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_json(b"{" + MESSAGES + b"," + fields + b"}", CHAT_DECODER)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ("{}", "messages"),
        ("[]", "messages"),
        ("null", "messages"),
        ('[{"content":"a"}]', "messages[0].role"),
        ('[{"role":"robot","content":"a"}]', "messages[0].role"),
        ('[{"role":"user","content":5}]', "messages[0].content"),
        ('[{"role":"user","content":[{"type":"image_url"}]}]', "messages[0].content[0].type"),
        ('[{"role":"user","content":"a","x":1}]', "messages[0].x"),
        (
            '[{"role":"assistant","content":"a","tool_calls":[{"id":"1"}]}]',
            "messages[0].tool_calls[0].function",
        ),
        ("[" + ",".join(['{"role":"user","content":"a"}'] * 1025) + "]", "messages"),
    ],
)
def test_bad_message_is_named(messages: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_json(f'{{"messages":{messages}}}'.encode(), CHAT_DECODER)
    assert caught.value.param == param


def test_missing_field_is_named() -> None:
    with pytest.raises(InvalidRequest, match="messages is required") as caught:
        decode_json(b"{}", CHAT_DECODER)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "data",
    [
        b'{"prompt":"a","n":1,"n":2}',
        b'{"prompt":"a","n":1,"\\u006e":2}',
        b'{"prompt":"a","metadata":{"k":"1","k":"2"}}',
        b'{"prompt":[%s],"n":1,"n":2}' % b", ".join([b"7"] * 500),
        b'{"prompt":[%s],"prompt":"a"}' % b", ".join([b"7"] * 500),
    ],
)
def test_repeated_keys(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="is repeated"):
        decode_json(data, COMPLETION_DECODER)


def test_long_lists_of_ids_are_read() -> None:
    ids = list(range(500))
    assert decode_json(json.dumps({"prompt": ids}).encode(), COMPLETION_DECODER).prompt == ids


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_bottomless_nesting(opening: bytes) -> None:
    for data in (opening * 200_000, b'{"prompt":' + opening * 200_000):
        with pytest.raises(InvalidRequest):
            decode_json(data, COMPLETION_DECODER)


def test_bottomless_nesting_where_anything_is_allowed() -> None:
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        decode_json(b"[" * 200_000, msgspec.json.Decoder())


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_depth_is_bounded_and_texts_do_not_count(opening: str) -> None:
    closing = {"[": "]"}.get(opening, "}")
    decoder = msgspec.json.Decoder()
    for depth in (128, 129, 900):
        data = (opening * depth + "0" + closing * depth).encode()
        if depth <= 128:
            decode_json(data, decoder)
        else:
            with pytest.raises(InvalidRequest, match="nested too deeply"):
                decode_json(data, decoder)
    flat = ["[" * 1000, '\\"[' * 1000, "\\", "{" * 1000] + [[]] * 1000
    assert decode_json(json.dumps(flat).encode(), decoder) == flat


def test_messages_stay_short_whatever_the_input() -> None:
    name = "x" * 100_000
    for body in (f'{{"{name}":1}}', f'{{"messages":[{{"role":"{name}"}}]}}'):
        with pytest.raises(InvalidRequest) as caught:
            decode_json(body.encode(), CHAT_DECODER)
        assert len(caught.value.message) < 300
        assert len(caught.value.param or "") < 150


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from([*CHAT_DECODER.type.__struct_fields__, "prompt", "unknown"])


@settings(deadline=None)
@given(st.dictionaries(field_names, json_values, max_size=5))
def test_any_json_object_is_decoded_or_refused(body: dict[str, object]) -> None:
    data = json.dumps(body).encode()
    for decoder in (CHAT_DECODER, COMPLETION_DECODER):
        try:
            decode_json(data, decoder)
        except InvalidRequest as error:
            assert error.message


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_json(data, CHAT_DECODER)
