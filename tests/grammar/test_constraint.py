"""What holds one answer to its grammar."""

import numpy as np
import pytest

from jaxsgl.grammar.constraint import Constraint
from jaxsgl.interface import ChoiceGrammar, GrammarSpec, LarkGrammar, RegexGrammar
from tests.grammar.toy import EOS, byte_token, compiled, toy_vocabulary

A, B, C = (byte_token(ord(letter)) for letter in "abc")


def constraint_of(spec: GrammarSpec, **options) -> Constraint:
    constraint = Constraint(compiled(spec).matcher(), toy_vocabulary(), **options)
    constraint.prepare()
    return constraint


def allowed(constraint: Constraint, answer_len: int) -> set[int] | None:
    row = np.full(toy_vocabulary().row_len, 0xFFFFFFFF, np.uint32)
    if not constraint.copy_mask(answer_len, row):
        assert (row == 0xFFFFFFFF).all()
        return None
    return set(toy_vocabulary().tokens_in(row).tolist())


def take(constraint: Constraint, *tokens: int) -> None:
    for token in tokens:
        constraint.take(constraint.taken_len, token)
        constraint.prepare()


def test_masks_are_for_one_position():
    constraint = constraint_of(RegexGrammar("ab+"))
    assert constraint.settled(0) and not constraint.settled(1)
    assert allowed(constraint, 0) >= {A} and B not in allowed(constraint, 0)
    constraint.take(0, A)
    assert allowed(constraint, 0) is None or constraint.prepared_len == 0
    assert allowed(constraint, 1) is None
    constraint.prepare()
    assert B in allowed(constraint, 1) and EOS not in allowed(constraint, 1)
    take(constraint, B)
    assert EOS in allowed(constraint, 2)


def test_a_draw_of_another_position_is_ignored():
    constraint = constraint_of(RegexGrammar("ab+"))
    constraint.take(1, B)
    assert constraint.taken_len == 0
    constraint.take(0, A)
    constraint.take(0, A)
    assert (constraint.taken_len, constraint.failed_len) == (1, -1)


def test_it_ends_where_nothing_can_be_added():
    constraint = constraint_of(ChoiceGrammar(("ab",)))
    take(constraint, A, B)
    assert constraint.ended_len == 2
    assert allowed(constraint, 2) is None


def test_it_ends_with_an_end_token():
    constraint = constraint_of(RegexGrammar("a*"))
    take(constraint, A, EOS)
    assert constraint.ended_len == 2


def test_a_token_that_does_not_fit_is_a_failure():
    constraint = constraint_of(RegexGrammar("ab+"))
    take(constraint, C)
    assert constraint.failed_len == 1
    assert constraint.failure == f"token {C} does not fit the grammar"


def test_a_dead_end_is_a_failure():
    vocabulary = toy_vocabulary()

    class Stuck:
        error = "no token of the vocabulary fits the grammar here"
        can_end = finished = False

        def fill_mask(self, row):
            row[:] = vocabulary.ends

    constraint = Constraint(Stuck(), vocabulary)  # pyright: ignore
    constraint.prepare()
    assert (constraint.failed_len, constraint.failure) == (0, Stuck.error)


def test_a_matcher_that_raises_is_a_failure(caplog):
    constraint = constraint_of(RegexGrammar("ab+"))
    constraint._matcher.fill_mask = lambda row: 1 / 0  # pyright: ignore
    constraint._matcher.try_fill_mask = lambda row: 1 / 0  # pyright: ignore
    constraint.take(0, A)
    assert constraint.try_prepare()
    assert (constraint.failed_len, constraint.failure) == (1, "the grammar's matcher broke")
    assert "a matcher broke" in caplog.text


@pytest.mark.parametrize("stop", [(), (C,)])
def test_min_tokens_holds_the_end_back(stop):
    constraint = constraint_of(RegexGrammar("a*"), min_tokens=2, stop_token_ids=stop)
    take(constraint, A)
    assert not allowed(constraint, 1) & {EOS, C}
    take(constraint, A)
    assert allowed(constraint, 2) & {EOS, C} == {EOS, *stop}


def test_min_tokens_cannot_make_an_answer_longer_than_its_grammar():
    constraint = constraint_of(ChoiceGrammar(("a",)), min_tokens=5)
    take(constraint, A)
    assert constraint.ended_len == 1


def test_stop_tokens_fit_only_where_the_grammar_can_end():
    constraint = constraint_of(RegexGrammar("(ab)*"), stop_token_ids=(A, C))
    assert {A, C, EOS} <= allowed(constraint, 0)
    constraint = constraint_of(RegexGrammar("b(ab)*"), stop_token_ids=(A, C))
    assert not {A, C, EOS} & allowed(constraint, 0)
    take(constraint, B)
    assert {A, C, EOS} <= allowed(constraint, 1)
    take(constraint, C)  # no token of the grammar: it ends the request
    assert constraint.failed_len == -1


def test_where_only_stop_tokens_fit_and_it_cannot_end_it_fails():
    constraint = constraint_of(RegexGrammar("ab"), stop_token_ids=(B,))
    take(constraint, A)
    ab_only = toy_vocabulary().spell(b"ab")
    assert len(ab_only) == 1
    assert (constraint.failed_len, constraint.ended_len) == (1, -1)
    assert constraint.failure.startswith("no token that may be drawn fits the grammar")


def test_going_back():
    constraint = constraint_of(LarkGrammar('start: "a" "b" "c"* "a"'))
    take(constraint, A, B, C, C)
    constraint.go_back(2)
    assert constraint.taken_len == 2
    assert allowed(constraint, 2) >= {A, C}
    take(constraint, A)
    assert constraint.ended_len == 3
    constraint.go_back(3)
    assert constraint.ended_len == 3
    constraint.go_back(1)
    assert B in allowed(constraint, 1)
    take(constraint, A)
    assert constraint.failed_len == 2
    constraint.go_back(1)
    assert B in allowed(constraint, 1) and constraint.failed_len == -1
    take(constraint, B)
    constraint.go_back(0)
    assert A in allowed(constraint, 0)


def test_the_last_mask_is_made_only_if_that_costs_nothing():
    constraint = constraint_of(RegexGrammar("[ab]{9}"), max_tokens=2)
    take(constraint, A, B)
    assert not constraint.settled(2)
    whole = constraint_of(ChoiceGrammar(("ab", "abc")), max_tokens=2)
    take(whole, A, B)
    assert not whole.settled(2)


def test_it_says_when_it_is_prepared():
    constraint = constraint_of(RegexGrammar("ab+"))
    calls = []
    constraint.on_prepared = lambda: calls.append(constraint.prepared_len)
    take(constraint, A)
    assert calls == [1]
