"""Bytes to events."""

import random

import pytest

from bench.serving.event_stream import EventSplitter, decode_event

STREAM = (
    b': comment\n\ndata: {"choices":[]}\n\n'
    b'event: x\r\ndata: {"choices":[{"text":"a\\nb"}]}\r\n\r\ndata: [DONE]\n\n'
)


def test_any_cut_of_the_stream_gives_the_same_events():
    whole = list(EventSplitter().feed(STREAM))
    assert whole == [b'{"choices":[]}', b'{"choices":[{"text":"a\\nb"}]}', b"[DONE]"]
    rng = random.Random(0)
    for _ in range(50):
        splitter, found, rest = EventSplitter(), [], STREAM
        while rest:
            cut = rng.randint(1, 9)
            found += splitter.feed(rest[:cut])
            rest = rest[cut:]
        assert found == whole


def test_text_and_finish_of_either_api():
    completion = decode_event(b'{"choices":[{"text":"x","finish_reason":"stop"}]}')
    chat = decode_event(b'{"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}')
    role = decode_event(b'{"choices":[{"delta":{"role":"assistant","content":null}}]}')
    assert (completion.text, completion.finish) == (chat.text, chat.finish) == ("x", "stop")
    assert (role.text, role.finish) == ("", None)


@pytest.mark.parametrize(
    ("choice", "answers"),
    [
        ('{"text":""}', True),
        ('{"delta":{"content":""}}', True),
        ('{"delta":{"role":"assistant","content":""}}', False),
        ('{"delta":{}}', False),
    ],
)
def test_an_empty_part_of_an_answer_is_told_from_what_opens_it(choice, answers):
    assert decode_event(f'{{"choices":[{choice}]}}'.encode()).answers is answers
    assert not decode_event(b'{"choices":[],"usage":{}}').answers


def test_usage_with_and_without_details():
    told = decode_event(
        b'{"usage":{"prompt_tokens":9,"completion_tokens":2,'
        b'"prompt_tokens_details":{"cached_tokens":8}}}'
    ).usage
    assert (told.prompt_tokens, told.completion_tokens, told.cached_len) == (9, 2, 8)
    assert decode_event(b'{"usage":{"prompt_tokens_details":null}}').usage.cached_len == 0


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'{"choices":[{"text":3}]}'])
def test_what_is_no_event_is_refused(data):
    with pytest.raises(ValueError):
        decode_event(data)
