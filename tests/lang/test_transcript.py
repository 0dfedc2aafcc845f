"""Texts and token ids that grow together, with the default model's tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsgl.interface import InvalidRequest
from jaxsgl.lang.transcript import Transcript, tokens_of
from jaxsgl.lang.turn_forms import TurnForms
from tests.tokenizer.smollm2 import smollm2

TEXTS = st.lists(
    st.text(alphabet=st.sampled_from("ab Z\n09é€😀.'<|im_start|>"), max_size=9), max_size=8
)
IM_START = 1


def as_text(ids: list[int]) -> str:
    return smollm2().decode(ids, skip_special=False)


@given(TEXTS, st.lists(st.integers(17, 49151), max_size=3))
def test_text_and_ids_agree_and_what_was_sent_stays(texts: list[str], drawn: list[int]) -> None:
    tokenizer = smollm2()
    transcript = Transcript(tokenizer)
    sent: list[int] = []
    for number, text in enumerate(texts):
        transcript.add_text(text)
        if number == 2:
            transcript.add_drawn(drawn)
            transcript.add_pieces([IM_START, "user\n"])
        ids = transcript.token_ids()
        # Of what was sent, only the tokens of the last character, and no more, may change.
        stays = max(0, len(sent) - 4)
        assert sent[:stays] == ids[:stays]
        assert as_text(ids) == transcript.text()
        sent = ids
    assert "".join(text for text in texts[:3]) in transcript.text()


def test_boundaries_are_healed() -> None:
    transcript = Transcript(smollm2())
    transcript.add_text("Hello wor")
    transcript.token_ids()
    transcript.add_text("ld, and good")
    transcript.token_ids()
    transcript.add_text("bye")
    assert transcript.token_ids() == smollm2().encode("Hello world, and goodbye")
    apart = smollm2().encode("Hello wor") + smollm2().encode("ld, and good")
    assert apart != smollm2().encode("Hello world, and good")  # what healing is for


def test_copies_go_their_own_ways() -> None:
    transcript = Transcript(smollm2())
    transcript.add_text("one")
    twin = transcript.copy()
    twin.add_text(" two")
    transcript.add_drawn([100, 200])
    assert twin.text() == "one two" and transcript.token_ids()[1:] == [100, 200]


def test_control_tokens_in_text_are_characters() -> None:
    transcript = Transcript(smollm2())
    transcript.add_text("<|im_start|>")
    assert IM_START not in transcript.token_ids()
    transcript.add_pieces([IM_START])
    assert transcript.token_ids()[-1] == IM_START


def test_turn_by_turn_as_all_at_once() -> None:
    tokenizer = smollm2()
    forms, transcript, messages = TurnForms(tokenizer), Transcript(tokenizer), []
    for role in ("system", "user", "assistant", "user"):
        roles = tuple(message["role"] for message in messages)
        form = forms.form(roles, role)
        transcript.add_pieces(form.before)
        if role == "assistant":
            assert transcript.token_ids() == tokenizer.encode_chat(messages, True)
        transcript.add_text(f"Said by the {role}, <|im_end|>.")
        transcript.add_pieces(form.after)
        messages.append({"role": role, "content": f"Said by the {role}, <|im_end|>."})
        assert transcript.token_ids() == tokenizer.encode_chat(messages, False)
        assert form.end_token_id == 2


class Template:
    def __init__(self, write) -> None:
        self.chat_pieces = lambda messages, generate=True: [write(messages, generate)]


def test_templates_that_cannot_be_followed() -> None:
    silent = TurnForms(Template(lambda messages, generate: "nothing"))
    with pytest.raises(InvalidRequest, match="does not show a user turn"):
        silent.form((), "user")
    forgetful = TurnForms(Template(lambda messages, generate: messages[-1]["content"]))
    with pytest.raises(InvalidRequest, match="differently when others follow"):
        forgetful.form(("user",), "assistant")


BYTES = [b"", b"ab", b"c\n", b"\nd", "é".encode()[:1], "é".encode()[1:]]


@pytest.mark.parametrize(
    ("text", "drawn", "stop", "kept", "rest"),
    [
        ("abc\n", [1, 2], None, (1, 2), ""),
        ("abc\n", [1, 2, 0], 0, (1, 2), ""),
        ("abc", [1, 2], "\n", (1,), "c"),
        ("ab", [1, 2], "c", (1,), ""),
        ("", [1], "a", (), ""),
        ("é", [4, 5, 3], "\n", (4, 5), ""),
        ("c\nab", [2, 1, 3], "\nd", (2, 1), ""),
        ("c\nabc", [2, 1, 2], "\n", (2, 1), "c"),
    ],
)
def test_which_tokens_are_part_of_an_answer(text, drawn, stop, kept, rest) -> None:
    assert tokens_of(text, drawn, BYTES, stop) == (kept, rest)
