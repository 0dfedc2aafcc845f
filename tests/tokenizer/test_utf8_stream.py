"""Text from bytes that arrive in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jaxsgl.tokenizer import Utf8Stream


def test_holds_back_the_start_of_a_character() -> None:
    stream = Utf8Stream()
    fox = "🦊".encode()
    assert stream.feed(b"a" + fox[:2]) == "a"
    assert stream.feed(fox[2:3]) == ""
    assert stream.feed(fox[3:] + b"b") == "🦊b"
    assert stream.finish() == ""


def test_what_can_never_become_a_character_is_replaced_at_once() -> None:
    stream = Utf8Stream()
    assert stream.feed(b"\xff") == "\ufffd"
    assert stream.feed("🦊".encode()[:2]) == ""
    assert stream.feed(b"x") == "\ufffdx"


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    stream = Utf8Stream()
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.finish() == "\ufffd"


@given(st.lists(st.binary() | st.text().map(str.encode).map(lambda text: text[:-1])))
def test_pieces_give_what_the_whole_gives(pieces: list[bytes]) -> None:
    stream = Utf8Stream()
    text = "".join([*map(stream.feed, pieces), stream.finish()])
    assert text == b"".join(pieces).decode(errors="replace")
