from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tools.json_stream import JsonStream

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)
INDENTS = st.sampled_from([None, 1])


def push_all(text: str) -> tuple[str, JsonStream, int]:
    """What came out, the stream, and how many characters it took."""
    stream, out = JsonStream(), ""
    for count, char in enumerate(text):
        pushed = stream.push(char)
        if pushed is None:
            return out, stream, count
        out += pushed
    return out, stream, len(text)


@given(VALUES, INDENTS, st.booleans())
def test_takes_any_value_as_it_is(value, indent, ascii) -> None:
    text = json.dumps([value], indent=indent, ensure_ascii=ascii)
    out, stream, count = push_all(text)
    assert (out, stream.done, count) == (text, True, len(text))
    assert stream.push(" ") is None


@given(VALUES, INDENTS, st.integers(0, 300))
def test_cut_anywhere_it_closes_to_valid_json(value, indent, cut) -> None:
    out, stream, _ = push_all(
        json.dumps({"a": value, "bé\\\n": [value, -1.5e-7]}, indent=indent)[:cut]
    )
    closed = json.loads(out + stream.closing())
    assert closed is None or isinstance(closed, dict)


@given(st.text(alphabet='{}[]",:\\untrfalse0123.eE+- \n\t\x01é', max_size=30))
def test_whatever_comes_what_came_out_closes_to_valid_json(text: str) -> None:
    out, stream, _ = push_all(text)
    json.loads(out + stream.closing())
    try:
        json.loads(text, parse_constant=lambda name: pytest.fail(name))
    except ValueError:
        return
    # What Python takes, it takes; a bare number does not know that it is over.
    assert stream.done or stream.closing() == ""


def test_raw_line_breaks_in_strings_are_escaped() -> None:
    assert push_all('{"a": "x\ny"}')[0] == '{"a": "x\\u000ay"}'


@pytest.mark.parametrize("text", ["[1,]", '{"a":1,}', "[01]", "{1:2}", '{"a" 1}', "[1 2]", "[tru}"])
def test_what_is_no_json_is_not_taken(text: str) -> None:
    _, stream, count = push_all(text)
    assert count < len(text) and not stream.done


def test_depth_is_bounded() -> None:
    out, stream, count = push_all("[" * 1000)
    assert count == 200
    json.loads(out + stream.closing())
