"""Messages can't bring control tokens into a prompt, whatever the template does with them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsgl.tokenizer import TokenizerError
from jaxsgl.tokenizer.chat_template import ChatTemplate
from jaxsgl.tokenizer.control_tokens import ControlToken, ControlTokens, GuardedMessages

TOKENS = ControlTokens(
    [
        ControlToken("<s>", 1),
        ControlToken("<s><s>", 2),
        ControlToken("[INST]", 3),
        ControlToken("§", 4),
        ControlToken("aba", 5),
        ControlToken("<end>", 6, strips_left=True, strips_right=True),
    ]
)
PIECES = ["<", "s", ">", "<s>", "[INST", "]", "[INST]", "§", "a", "b", "aba", " ", "\n", "é", "{"]


def restored(piece: str | int, guarded: GuardedMessages) -> str | int:
    return piece if isinstance(piece, int) else guarded.restored(piece)


def test_splits_at_the_longest_token() -> None:
    assert list(TOKENS.split("x<s><s><s>y[INST]")) == ["x", 2, 1, "y", 3]
    assert list(TOKENS.split("")) == []
    assert list(TOKENS.split("plain")) == ["plain"]


@given(
    st.sets(st.text("<|a>.*[", min_size=1, max_size=6), min_size=1, max_size=9),
    st.text("<|a>.*[x", max_size=60),
)
def test_finds_what_a_search_for_each_token_would(texts: set[str], text: str) -> None:
    found = ControlTokens([ControlToken(each, n) for n, each in enumerate(sorted(texts))])
    wanted: list[str | int] = []
    at = 0
    while at < len(text):
        here = [each for each in texts if text.startswith(each, at)]
        if here:
            wanted.append(sorted(texts).index(max(here, key=len)))
        elif wanted and isinstance(wanted[-1], str):
            wanted[-1] += text[at]
        else:
            wanted.append(text[at])
        at += len(max(here, key=len, default="x"))
    assert list(found.split(text)) == wanted


def test_white_space_around_a_token_that_takes_it() -> None:
    assert list(TOKENS.split("x \n<end>\n y<s> z")) == ["x", 6, "y", 1, " z"]


def test_white_space_is_taken_once() -> None:
    """Also where it would be a token itself, or begins one."""
    tokens = ControlTokens([ControlToken("<a>", 1, strips_right=True), ControlToken("\n", 2)])
    assert list(tokens.split("\n<a> \n x\n<a>")) == [2, 1, "x", 2, 1]
    tokens = ControlTokens([ControlToken(">", 0, strips_right=True), ControlToken("\n>", 1)])
    assert list(tokens.split(">\n> a")) == [0, 0, "a"]
    tokens = ControlTokens([ControlToken("<a>", 1, strips_left=True), ControlToken("\n", 2)])
    assert list(tokens.split("x\n<a> \t<a>")) == ["x", 2, 1, 1]


def test_the_longest_token_wins_although_a_shorter_one_takes_white_space() -> None:
    tokens = ControlTokens([ControlToken(">", 0, strips_left=True), ControlToken(">b", 1)])
    assert list(tokens.split("a\n>b> a \n>")) == ["a\n", 1, 0, " a", 0]


def test_a_vocabulary_without_control_tokens() -> None:
    nothing = ControlTokens([])
    assert list(nothing.split("<s>")) == ["<s>"]
    assert nothing.guard(["<s>"], "").messages == ["<s>"]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_guarded_text_has_no_token_and_can_be_restored(text: str) -> None:
    guarded = TOKENS.guard([text], "")
    (message,) = guarded.messages
    assert len(message) == len(text)
    assert guarded.restored(message) == text
    assert [restored(piece, guarded) for piece in TOKENS.split(message)] == ([text] if text else [])


TEMPLATES = [
    "{% for m in messages %}<s>{{ m.a }}{{ m.b }}<end>{% endfor %}",
    "{% for m in messages %}<s>{{ m.a | trim }}{{ m.b | trim }}<end>{% endfor %}",
    "{% for m in messages %}<s>{{ m.a + m.b }}>{{ m.b }}]<end>{% endfor %}",
    "{% for m in messages %}<s>{{ m.a | upper | lower }}{{ m | tojson }}<end>{% endfor %}",
    "{% for m in messages %}<s>{{ m.c[0].d }}{{ m.c[1] }}{{ m.a[2:] }}<end>{% endfor %}",
]


@pytest.mark.parametrize("source", TEMPLATES)
@settings(max_examples=50, deadline=None)
@given(*[st.lists(st.sampled_from(PIECES)).map("".join)] * 2)
def test_only_the_template_writes_tokens(source: str, a: str, b: str) -> None:
    template = ChatTemplate(source, {})
    messages: list[dict[str, Any]] = [{"a": a, "b": b, "c": [{"d": a}, b]}]
    guarded = TOKENS.guard(messages, source)
    rendered = template.render(guarded.messages, False)
    found = [piece for piece in TOKENS.split(rendered) if isinstance(piece, int)]
    assert found == [1, 6]
    assert guarded.restored(rendered) == template.render(messages, False)


def test_without_the_guard_messages_write_tokens() -> None:
    template = ChatTemplate(TEMPLATES[0], {})
    rendered = template.render([{"a": "[INST", "b": "]"}], False)
    assert [piece for piece in TOKENS.split(rendered) if isinstance(piece, int)] == [1, 3, 6]


def test_keys_and_roles_change_only_if_they_hold_a_whole_token() -> None:
    message = {"role": "a", "b": "x<", "<s>": "x", "a": ["ab"]}
    ((role, text, token, parts),) = [list(item.items()) for item in TOKENS.guard([message], "")[0]]
    assert role == ("role", "a")
    assert text[0] == "b"
    assert "<" not in text[1]
    assert "<" not in token[0]
    assert parts[0] == "a"
    assert "a" not in parts[1][0]


def test_a_stand_in_that_a_message_already_uses_is_not_taken() -> None:
    stand_ins = [chr(code) for code in range(0xF0000, 0xF0100)]
    message = "<s>" + "".join(stand_ins)
    guarded = TOKENS.guard([message], "")
    assert not guarded.originals.keys() & set(stand_ins)
    assert guarded.restored(guarded.messages[0]) == message


def test_messages_that_use_every_stand_in_are_refused() -> None:
    with pytest.raises(TokenizerError, match="every character"):
        TOKENS.guard(["".join(map(chr, range(0xF0000, 0xFFFFE)))], "")
