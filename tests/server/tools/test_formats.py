"""Tool calls in every format, cut in every way."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.answer_reader import AnswerReader
from server.reasoning import ReasoningSplitter, is_open
from server.tools.formats import FORMATS, TextParser, arguments_of, only_calls
from server.tools.pieces import CallArguments, CallBegin, Content, Piece, Reasoning, merged

CALL = '{"name": "f", "arguments": {"a": [1, {"b": "}]"}]}}'
Calls = list[tuple[str, object]]

EXAMPLES: list[tuple[str, str, str, Calls]] = [
    # format, text, content, calls
    ("hermes", "", "", []),
    ("hermes", "plain < text <tool", "plain < text <tool", []),
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", [("f", {"a": [1, {"b": "}]"}]})]),
    (
        "hermes",
        f'Hi.\n<tool_call>{CALL}</tool_call>\n<tool_call>{{"name":"g"}}</tool_call> bye ',
        "Hi. bye",
        [("f", {"a": [1, {"b": "}]"}]}), ("g", {})],
    ),
    ("hermes", '<tool_call>{"arguments": {"x": 1}, "id": 7, "name": "f"}', "", [("f", {"x": 1})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}', "", [("f", {"x": 1})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "cut o', "", [("f", {"x": "cut o"})]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": nope}}</tool_call>z',
        "z",
        [("f", {"x": None})],
    ),
    ("hermes", '<tool_call>{"nam', '<tool_call>{"nam', []),
    ("hermes", "<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", []),
    ("hermes", '<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
    ("llama3", '{"name": "f", "parameters": {"x": 1}}', "", [("f", {"x": 1})]),
    (
        "llama3",
        '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
        "",
        [("f", {}), ("g", {})],
    ),
    ("llama3", '{"answer": 42} is JSON', '{"answer": 42} is JSON', []),
    ("llama3", "text {", "text {", []),
    ("llama3", '{"name": "f", "parameters": {}} and {"a": 1}', 'and {"a": 1}', [("f", {})]),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [("f", {"a": [1, {"b": "}]"}]})] * 2),
    (
        "mistral",
        'ok[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[CALL_ID]12[ARGS]{}',
        "ok",
        [("f", {"x": 1}), ("g", {})],
    ),
    ("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]", []),
    ("mistral", "[TOOL_CALLS]f" * 200, "[TOOL_CALLS]f" * 200, []),
    ("mistral", f"[TOOL_CALLS]{'f' * 300}{{}}", f"[TOOL_CALLS]{'f' * 300}{{}}", []),
    ("mistral", f"[TOOL_CALLS]{'f' * 250}{{}}", "", [("f" * 250, {})]),
    ("mistral", "[TOOL_CALLS] []", "[TOOL_CALLS][]", []),
    ("pythonic", "[f(a=1, b='x,]\\''), m.g()]", "", [("f", {"a": 1, "b": "x,]'"}), ("m.g", {})]),
    ("pythonic", "[1] is a footnote", "[1] is a footnote", []),
    ("pythonic", "[f(a=1), g(", "", [("f", {"a": 1})]),
    ("pythonic", "[f(a=x)]", "[f(a=x)]", []),
    ("pythonic", "no [f()]", "no [f()]", []),
]


def read(parser: TextParser | AnswerReader, pieces: list[str]) -> list[Piece]:
    found = [piece for text in pieces for piece in parser.feed(text)]
    return merged(found + parser.finish())


def summary(pieces: list[Piece]) -> tuple[str, Calls]:
    """Content and calls; checks the order of pieces and that arguments are JSON objects."""
    names: list[str] = []
    arguments: defaultdict[int, str] = defaultdict(str)
    content = ""
    for piece in pieces:
        match piece:
            case Content(text):
                content += text
            case CallBegin(index, name):
                assert index == len(names)
                names.append(name)
            case CallArguments(index, text):
                assert index == len(names) - 1
                arguments[index] += text
            case Reasoning():
                raise AssertionError
    calls = [(name, json.loads(arguments[index])) for index, name in enumerate(names)]
    assert all(isinstance(each, dict) for _, each in calls)
    return content, calls


def cuts(text: str) -> st.SearchStrategy[list[str]]:
    def cut(places: list[int]) -> list[str]:
        edges = sorted({0, len(text), *places})
        return [text[low:high] for low, high in pairwise(edges)]

    return st.lists(st.integers(0, len(text)), max_size=8).map(cut)


@pytest.mark.parametrize(("format", "text", "content", "calls"), EXAMPLES)
def test_examples(format: str, text: str, content: str, calls: Calls) -> None:
    for pieces in ([text], list(text), [text[i : i + 3] for i in range(0, len(text), 3)]):
        assert summary(read(TextParser(FORMATS[format]), pieces)) == (content, calls)


MARKS = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|python_tag|>",
    "[",
    "]",
    ";",
    ",",
]
ATOMS = [
    *MARKS,
    CALL,
    '{"name": "f", "parameters": {"x": "é\n',
    '{"name"',
    "f(a=1)",
    "f(",
    " ",
    "\n",
    "x",
    '"',
    "}",
]


@given(st.data(), st.sampled_from(sorted(FORMATS)), st.lists(st.sampled_from(ATOMS), max_size=8))
def test_any_cut_gives_the_same_and_joins_to_valid_json(
    data, format: str, atoms: list[str]
) -> None:
    text = "".join(atoms)
    whole = read(TextParser(FORMATS[format]), [text])
    summary(whole)
    assert read(TextParser(FORMATS[format]), data.draw(cuts(text))) == whole


@given(st.text(alphabet="abc é\n.,!?()", max_size=40), st.sampled_from(sorted(FORMATS)))
def test_text_without_calls_is_left_alone(text: str, format: str) -> None:
    assert read(TextParser(FORMATS[format]), list(text)) == ([Content(text)] if text else [])


def test_forced_calls() -> None:
    text = f'[{CALL}, {{"name": "g", "arguments": {{}}}}]'
    assert [name for name, _ in summary(read(TextParser(only_calls), list(text)))[1]] == ["f", "g"]
    assert summary(read(TextParser(arguments_of("h")), ['{"a": ', "1"])) == ("", [("h", {"a": 1})])
    assert summary(read(TextParser(only_calls, one_call=True), [text]))[1][1:] == []


def test_arguments_come_as_they_are_written() -> None:
    parser = TextParser(FORMATS["hermes"])
    assert parser.feed('<tool_call>{"name": "f", "arguments": {"a": "x') == [
        CallBegin(0, "f"),
        CallArguments(0, '{"a": "x'),
    ]
    assert parser.feed('y"}') == [CallArguments(0, 'y"}')]


THINKING = [
    # opened, text, reasoning, content
    (None, "<think>\nhm\n\n</think>\n\nSo.", "hm", "So."),
    (None, "no thought", "", "no thought"),
    (None, " <thin", "", " <thin"),
    (True, "hm </thi</think> So", "hm </thi", "So"),
    (True, "<think>hm</think>", "hm", ""),
    (True, "hm, cut o", "hm, cut o", ""),
    (True, "hm </think", "hm </think", ""),
    (False, "a <think> b", "", "a <think> b"),
]


@pytest.mark.parametrize(("opened", "text", "reasoning", "content"), THINKING)
def test_reasoning_is_taken_out(opened, text: str, reasoning: str, content: str) -> None:
    for size in range(1, len(text) + 1):
        reader = AnswerReader(ReasoningSplitter(opened), None)
        pieces = read(reader, [text[i : i + size] for i in range(0, len(text), size)])
        assert "".join(p.text for p in pieces if isinstance(p, Reasoning)) == reasoning
        assert "".join(p.text for p in pieces if isinstance(p, Content)) == content


@given(
    st.data(),
    st.sampled_from([None, True, False]),
    st.lists(
        st.sampled_from(["<think>", "</think>", "a", " ", "\n", "<", "</", CALL, "<tool_call>"]),
        max_size=10,
    ),
)
def test_reasoning_and_calls_in_any_cut(data, opened, atoms: list[str]) -> None:
    def reader() -> AnswerReader:
        return AnswerReader(ReasoningSplitter(opened), TextParser(FORMATS["hermes"]))

    text = "".join(atoms)
    assert read(reader(), data.draw(cuts(text))) == read(reader(), [text])


def test_how_a_prompt_ends_says_whether_there_is_reasoning() -> None:
    assert is_open("qwen3", "assistant\n") is None
    assert is_open("qwen3", "assistant\n<think>\n") is True
    assert is_open("qwen3", "<think>\n\n</think>\n\n") is False
    assert is_open("deepseek-r1", "Assistant:") is True
    assert is_open("deepseek-r1", "</think>") is False
