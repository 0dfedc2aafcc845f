"""Answers that are free, or free up to a trigger, and texts that must not come about."""

from __future__ import annotations

import random

import numpy as np
import pytest

from jaxsgl.grammar.constraint import Constraint
from jaxsgl.grammar.free_text import FreeMatcher
from jaxsgl.grammar.matcher import Matcher
from jaxsgl.grammar.restrictions import Restrictions
from jaxsgl.grammar.token_index import TokenIndex
from jaxsgl.grammar.triggered import Trigger, TriggeredMatcher, blank_tokens
from jaxsgl.interface import RegexGrammar
from tests.grammar.toy import EOS, byte_token, compiled, mask_of, toy_vocabulary

VOCABULARY = toy_vocabulary()
INDEX = TokenIndex(VOCABULARY)
TEXTS = VOCABULARY.token_bytes
END = "}]"


def triggered(trigger: str = END, *, repeats: bool = False) -> TriggeredMatcher:
    return TriggeredMatcher(
        Trigger(trigger.encode(), VOCABULARY, INDEX),
        compiled(RegexGrammar("(ab)+;")).matcher,
        VOCABULARY,
        repeats=repeats,
        blanks=blank_tokens(VOCABULARY),
    )


def take(matcher: Matcher, text: str) -> None:
    for byte in text.encode():
        assert matcher.advance(byte_token(byte))


def texts_of(matcher: Matcher) -> set[bytes]:
    return {TEXTS[token] for token in mask_of(matcher).tolist() if token < len(TEXTS)}


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize(
    "text", ["", "x", "x}", "}]", "}] ", "}]a", "}]ab", "x}]\n\nabab", "}]ab;"]
)
def test_the_mask_is_what_advance_takes(text: str, repeats: bool) -> None:
    matcher = triggered(repeats=repeats)
    take(matcher, text)
    allowed = set(mask_of(matcher).tolist())
    # llguidance and the own engine alike: tokens that are spelled alike are in the mask together.
    for token in range(len(TEXTS)):
        twin = matcher.fork()
        assert twin.advance(token) == (token in allowed), (text, TEXTS[token])


def test_free_then_held() -> None:
    matcher = triggered()
    assert EOS not in mask_of(matcher) and b"true" in texts_of(matcher)
    assert not matcher.can_end
    take(matcher, "x}")
    assert b"]" in texts_of(matcher)
    take(matcher, "]")
    assert texts_of(matcher) - {b""} == {
        b"a",
        b"ab",
        b"aba",
        b"abab",
        b" ",
        b"  ",
        b"\n",
        b"\n  ",
        b"\t",
        b"\r",
    }
    take(matcher, "\nab")
    assert b"\n" not in texts_of(matcher)
    take(matcher, ";")
    assert matcher.finished and matcher.can_end


def test_a_token_that_runs_over_the_trigger_is_held_back() -> None:
    matcher = triggered('"')
    assert b'": "' not in texts_of(matcher)
    assert b'"' in texts_of(matcher)
    matcher = triggered("e+")
    take(matcher, "e")
    assert b"+" in texts_of(matcher)


def test_free_again_after_each_text() -> None:
    matcher = triggered(repeats=True)
    assert matcher.can_end and EOS in mask_of(matcher)
    take(matcher, "}]ab;")
    assert matcher.can_end and not matcher.finished and b"true" in texts_of(matcher)
    take(matcher, "more }]")
    assert not matcher.can_end and b"true" not in texts_of(matcher) and EOS not in mask_of(matcher)
    take(matcher, "ab;")
    assert matcher.advance(EOS) and matcher.finished


@pytest.mark.parametrize("repeats", [False, True])
def test_going_back_is_as_if_it_had_not_been(repeats: bool) -> None:
    rng = random.Random(5)
    matcher, taken = triggered(repeats=repeats), []
    masks = [mask_of(matcher).tolist()]
    for _ in range(300):
        if taken and rng.random() < 0.3:
            count = rng.randint(1, min(4, len(taken)))
            matcher.rollback(count)
            del taken[-count:], masks[-count:]
            assert mask_of(matcher).tolist() == masks[-1]
        allowed = [token for token in masks[-1] if token != EOS]
        wanted = [byte_token(byte) for byte in b"}]ab;"]
        token = rng.choice([token for token in wanted if token in allowed] or allowed or [EOS])
        if not matcher.advance(token):
            continue
        taken.append(token)
        masks.append(mask_of(matcher).tolist())
    with pytest.raises(ValueError, match="cannot take back"):
        matcher.rollback(len(taken) + 1)


def restricted(**options) -> Constraint:
    constraint = Constraint(
        FreeMatcher(VOCABULARY), VOCABULARY, restrictions=Restrictions(VOCABULARY, INDEX, **options)
    )
    constraint.prepare()
    return constraint


def mask_now(constraint: Constraint) -> set[int]:
    row = VOCABULARY.nothing.copy()
    assert constraint.copy_mask(constraint.taken_len, row)
    return set(VOCABULARY.tokens_in(row).tolist())


def test_only_allowed_tokens() -> None:
    constraint = restricted(allowed_token_ids=[3, 260, EOS])
    assert mask_now(constraint) == {3, 260, EOS}


WORDS = ("ab", "bab", "é", "} }", "日本", "ee")


def test_no_bad_word_ever_comes_about() -> None:
    """For a random answer, the mask is exactly the tokens that complete no word."""
    rng = random.Random(3)
    constraint = restricted(bad_words=WORDS)
    words, text = [word.encode() for word in WORDS], b""
    likely = [byte_token(byte) for byte in "abeé} 日本".encode()]
    for _ in range(150):
        allowed = mask_now(constraint)
        clean = {
            token
            for token, data in enumerate(TEXTS)
            if not any(word in (text[-8:] + data) for word in words)
        }
        assert {token for token in allowed if token < len(TEXTS)} == clean
        choices = [token for token in likely if token in allowed]
        token = rng.choice(choices)
        text += TEXTS[token]
        constraint.take(constraint.taken_len, token)
        constraint.prepare()
        if rng.random() < 0.2:
            constraint.go_back(constraint.taken_len - 1)
            text = text[: -len(TEXTS[token])]
    assert not any(word in text for word in words)


def test_nothing_left_ends_a_free_answer_and_fails_a_grammar() -> None:
    only = Restrictions(VOCABULARY, INDEX, allowed_token_ids=[byte_token(ord("z"))])
    held = Constraint(compiled(RegexGrammar("ab")).matcher(), VOCABULARY, restrictions=only)
    held.prepare()
    assert held.failed_len == 0
    free = Constraint(
        FreeMatcher(VOCABULARY),
        VOCABULARY,
        min_tokens=2,
        restrictions=Restrictions(VOCABULARY, INDEX, allowed_token_ids=[EOS]),
    )
    free.prepare()
    assert free.ended_len == 0


def test_token_index_against_a_search() -> None:
    for text in (b"a", b"ab", b"\xc3", "é".encode(), b"} ", b"zzz", b'"'):
        beginning = {i for i, t in enumerate(TEXTS) if t.startswith(text)}
        assert set(INDEX.beginning_with(text).tolist()) == beginning
        assert set(INDEX.containing(text).tolist()) == {i for i, t in enumerate(TEXTS) if text in t}
    assert np.array_equal(INDEX.containing(b"zzz"), [])
