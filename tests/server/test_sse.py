"""Events that are encoded once are the events that encoding each time would give."""

from __future__ import annotations

import json

import msgspec
import pytest

from jaxsgl.interface import Delta, Finish, Usage
from server.chat_format import ChatFormat
from server.completion_format import CompletionFormat
from server.replies import ReplyHead, UsageMeter
from server.sse import TextEvent


class _Object(msgspec.Struct):
    name: str
    text: str


@pytest.mark.parametrize(
    "text", ["", "a", '"\\\n', "<text>", "é\u2028\u2029\u0085", "\x0b\x0c\x1c"]
)
@pytest.mark.parametrize("name", ["model", "<text>"])
def test_prebuilt_event(name: str, text: str) -> None:
    data = TextEvent(lambda text: _Object(name, text))(text).decode()
    assert json.loads(data.removeprefix("data: ")) == {"name": name, "text": text}
    assert data.endswith("\n\n") and data.splitlines() == [data[:-2], ""]


@pytest.mark.parametrize("make", [ChatFormat, CompletionFormat])
def test_prebuilt_and_fresh_events_agree(make: type[ChatFormat] | type[CompletionFormat]) -> None:
    reply_format = make(ReplyHead("id", 1, "<text>"), lambda _: b"")
    meter = UsageMeter(1)
    meter.update(0, Usage(1, 1, 0))
    delta = Delta("é\u2028<text>", [1], Usage(1, 1, 0))
    prebuilt = reply_format.text(0, delta, None)
    fresh = json.loads(reply_format.text(0, delta, meter.total())[6:])
    assert fresh.pop("usage")["total_tokens"] == 2
    assert json.loads(prebuilt[6:]) == fresh
    assert b"\xe2\x80\xa8" not in prebuilt


@pytest.mark.parametrize("make", [ChatFormat, CompletionFormat])
def test_a_token_without_text_is_an_event(make: type[ChatFormat] | type[CompletionFormat]) -> None:
    reply_format = make(ReplyHead("id", 1, "m"), lambda _: b"")
    usage = Usage(1, 1, 0)
    assert b'""' in reply_format.text(0, Delta("", [7], usage), None)
    assert reply_format.text(0, Delta("", [], usage), None) == b""
    # The closing event tells of the last one.
    assert reply_format.text(0, Delta("", [7], usage, Finish("stop")), None) == b""


def test_usage_counts_a_prompt_once() -> None:
    meter = UsageMeter(answers_per_prompt=2)
    for index, usage in ((1, Usage(5, 1, 4)), (0, Usage(5, 2, 0)), (2, Usage(7, 1, 0))):
        meter.update(index, usage)
    meter.update(1, Usage(5, 3, 4))
    total = meter.total()
    assert (total.prompt_tokens, total.completion_tokens, total.total_tokens) == (12, 6, 18)
    assert total.prompt_tokens_details.cached_tokens == 4
