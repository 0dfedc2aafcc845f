from hypothesis import given
from hypothesis import strategies as st

from jaxsgl.scheduling.stop_matcher import StopMatcher

TEXT = st.text(alphabet="abé", max_size=12)


def feed_all(matcher: StopMatcher, pieces: list[bytes]) -> tuple[bytes, str | None]:
    out = b""
    for piece in pieces:
        data, matched = matcher.feed(piece)
        out += data
        if matched is not None:
            return out, matched
    return out + matcher.finish(), None


@given(
    data=st.lists(st.binary(max_size=3).map(lambda b: bytes(b"ab\xc3\xa9"[x % 4] for x in b))),
    stops=st.lists(TEXT.filter(bool), min_size=1, max_size=3),
)
def test_equals_a_search_in_the_whole_text(data: list[bytes], stops: list[str]) -> None:
    whole = b"".join(data)
    found = [(whole.find(s.encode()), -len(s), s) for s in stops if s.encode() in whole]
    out, matched = feed_all(StopMatcher(tuple(stops)), data)
    if not found:
        assert (out, matched) == (whole, None)
        return
    # The stream ends with the stop that completes first; what was let through is text before it.
    ends = min(whole.find(s.encode()) + len(s.encode()) for s in stops if s.encode() in whole)
    assert matched in stops
    at = len(out)
    assert whole[:at] == out
    assert whole[at:].startswith(matched.encode())
    assert at + len(matched.encode()) >= ends


def test_holds_back_only_what_may_begin_a_stop() -> None:
    matcher = StopMatcher(("END",))
    assert matcher.feed(b"text E") == (b"text ", None)
    assert matcher.feed(b"N") == (b"", None)
    assert matcher.feed(b"x") == (b"ENx", None)
    assert matcher.feed(b"E") == (b"", None)
    assert matcher.finish() == b"E"


def test_the_longer_of_two_stops_at_one_place_wins() -> None:
    assert StopMatcher(("a", "ab")).feed(b"xab") == (b"x", "ab")


def test_a_character_split_over_tokens_is_found() -> None:
    matcher = StopMatcher(("é",))
    assert matcher.feed("né".encode()[:-1]) == (b"n", None)
    assert matcher.feed("é".encode()[-1:]) == (b"", "é")
