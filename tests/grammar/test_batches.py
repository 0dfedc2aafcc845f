"""Masks that are made for many answers in one go."""

import random

import numpy as np
import pytest

from jaxsgl.grammar.closing import Closer, Steering
from jaxsgl.grammar.compiled import GrammarMemory
from jaxsgl.grammar.compiler import GrammarCompiler
from jaxsgl.grammar.constraint import Constraint
from jaxsgl.interface import JsonSchemaGrammar
from tests.grammar.toy import EOS, toy_vocabulary

SCHEMA = """{"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},
"required": ["name"], "additionalProperties": false}"""


@pytest.fixture(scope="module")
def grammar():
    return GrammarCompiler(GrammarMemory(toy_vocabulary())).compile(JsonSchemaGrammar(SCHEMA))


def state_of(constraint: Constraint):
    row = np.zeros(toy_vocabulary().row_len, np.uint32)
    has_mask = constraint.copy_mask(constraint.taken_len, row)
    return has_mask, row.tolist(), constraint.ended_len, constraint.failed_len, constraint.failure


def test_they_are_those_that_are_made_alone(grammar):
    draw = random.Random(1)
    vocabulary = toy_vocabulary()
    options = [
        {},
        {"min_tokens": 4},
        {"max_tokens": 5},
        {"stop_token_ids": (vocabulary.spell(b"a"))},
    ]
    together, alone = (
        [Constraint(grammar.matcher(), vocabulary, **options[n % 4]) for n in range(12)]
        for _ in range(2)
    )
    wakes = []
    together[0].on_prepared = lambda: wakes.append(together[0].taken_len)
    for _ in range(25):
        Constraint.prepare_together(together)
        for one, other in zip(together, alone, strict=True):
            other.prepare()
            assert state_of(one) == state_of(other)
            has_mask, words, *_ = state_of(other)
            if has_mask:
                allowed = vocabulary.tokens_in(np.array(words, np.uint32)).tolist()
                # Now and then one that does not fit, which ends the answer in an error.
                token_id = draw.choice(allowed) if draw.random() < 0.97 else EOS
                one.take(one.taken_len, token_id)
                other.take(other.taken_len, token_id)
    assert wakes[:3] == [0, 1, 2] and len(wakes) == 25


def test_where_that_fails_each_is_made_alone(grammar, monkeypatch, caplog):
    constraint = Constraint(grammar.matcher(), toy_vocabulary())
    constraint.prepare()
    constraint.take(0, toy_vocabulary().spell(b"{")[0])
    monkeypatch.setattr(constraint.matcher.batch, "fill_masks", lambda matchers: 1 / 0)
    Constraint.prepare_together([constraint])
    assert constraint.prepared_len == 1
    assert "masks could not be made together" in caplog.text


def test_an_answer_that_is_led_to_its_end_is_none_of_them(grammar):
    steering = Steering(Closer(toy_vocabulary()), toy_vocabulary(), 9)
    steered = Constraint(grammar.matcher(), toy_vocabulary(), max_tokens=9, steering=steering)
    assert steered.batch is None
    assert Constraint(grammar.matcher(), toy_vocabulary(), max_tokens=9).batch is not None


def test_the_first_mask_of_a_schema_is_there_at_once(grammar):
    vocabulary = toy_vocabulary()
    one, other = (np.full(vocabulary.row_len, 7, np.uint32) for _ in range(2))
    matcher = grammar.matcher()
    assert matcher.try_fill_mask(one)
    matcher.fill_mask(other)
    assert one.tolist() == other.tolist() and one.any()
    assert matcher.advance(vocabulary.spell(b"{")[0])
    assert not matcher.try_fill_mask(one)
    matcher.rollback(1)
    assert matcher.try_fill_mask(one) and one.tolist() == other.tolist()
