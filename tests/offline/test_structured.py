"""Grammars through the offline engine, with a fake runner."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from jaxsgl.interface import InvalidRequest, LarkGrammar, RegexGrammar, SamplingParams
from jaxsgl.offline.offline_engine import OfflineEngine
from tests.fake_runner import FakeRunner, make_limits
from tests.offline.local_replica import Leftovers, open_engine


@pytest.fixture(scope="module")
def engine() -> Iterator[OfflineEngine]:
    leftovers = Leftovers()
    with open_engine() as engine:
        yield engine
    assert not leftovers()


PATTERN = "[A-F]{5}[G-M]{5}"


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": PATTERN},
        {"lark": f"start: /{PATTERN}/"},
        {"ebnf": "root ::= [A-F]{5} [G-M]{5}"},
        {"response_format": {"type": "regex", "pattern": PATTERN}},
        {"structured_outputs": {"regex": PATTERN}},
    ],
)
def test_every_field(engine: OfflineEngine, fields: dict[str, object]):
    answer = engine.generate("ABC", {"max_new_tokens": 20, **fields})
    assert re.fullmatch(PATTERN, answer["text"])
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"


def test_choices_for_some_prompts(engine: OfflineEngine):
    samplings = [{"choice": ["YES", "NO"]} if n % 2 else {"ignore_eos": True} for n in range(8)]
    answers = engine.generate(["ABC"] * 8, [s | {"max_new_tokens": 9} for s in samplings])
    assert {answer["text"] for answer in answers[1::2]} <= {"YES", "NO"}
    assert all(len(answer["output_ids"]) == 9 for answer in answers[::2])


def test_sampling_params_and_streams(engine: OfflineEngine):
    params = SamplingParams(max_tokens=20, grammar=RegexGrammar(PATTERN))
    *_, last = engine.generate("ABC", params, stream=True)
    assert re.fullmatch(PATTERN, last["text"])


def test_requests_under_a_grammar_seen_before_begin_in_one_step():
    runner = FakeRunner(make_limits(num_slots=8, max_tokens=64))
    params = {"max_new_tokens": 4, "regex": PATTERN}
    with open_engine(runner) as engine:
        engine.generate(input_ids=[1, 2], sampling_params=params)
        runner.plans.clear()
        prompts = [[row + 1, 2, 3] for row in range(8)]
        engine.generate(input_ids=prompts, sampling_params=params)
    assert runner.plans[0].num_rows == 8


def test_what_is_refused(engine: OfflineEngine):
    for fields, message in (
        ({"regex": "(A"}, "unterminated subpattern"),
        ({"regex": "A", "choice": ["A"]}, "exclude each other"),
        ({"regex": 5}, "regex"),
        ({"strict_complete": True}, "needs a grammar"),
        ({"regex": "1"}, "no token"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            engine.generate("ABC", {"max_new_tokens": 9, **fields})
    assert engine.generate("ABC", {"max_new_tokens": 9, "choice": ["A"]})["text"] == "A"


def test_the_check(engine: OfflineEngine):
    report = engine.check_grammar(LarkGrammar('start: "YES" | "NO" "X"*'), "N")
    assert (report.forced, report.can_end, report.prefix_taken_len) == (b"O", False, 1)
    assert report.allowed_tokens == [(ord("O") - 64, b"O")]
    with pytest.raises(InvalidRequest) as error:
        engine.check_grammar(LarkGrammar("start: ("))
    assert error.value.code == "invalid_grammar"
