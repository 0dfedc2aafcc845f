"""Answers held to grammars, through scheduler, runner actor and mask threads, with a runner whose
draws can be worked out by hand."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from jaxsgl.actors.grammar_actor import GrammarActor
from jaxsgl.actors.messages import Abort, Admit, Drain, Refused
from jaxsgl.grammar.compiled import GrammarMemory
from jaxsgl.grammar.compiler import GrammarCompiler
from jaxsgl.grammar.constraint import Constraint
from jaxsgl.grammar.vocabulary import Vocabulary
from jaxsgl.interface import (
    ChoiceGrammar,
    Finish,
    GrammarSpec,
    LarkGrammar,
    RegexGrammar,
    SamplingParams,
)
from tests.actors.scheduler_rig import TOKEN_BYTES, HeldRunner, Rig
from tests.actors.waiting import until
from tests.fake_runner import (
    EOS_ID,
    VOCAB_SIZE,
    FakeRunner,
    draw,
    expected_tokens,
    extend_hash,
    make_limits,
)

LETTERS = RegexGrammar("[A-F]{5}[G-M]{5}")
NESTED = LarkGrammar('start: "(" start ")" | "[" start "]" | X\nX: /[A-Z]+/')
GRAMMARS = (LETTERS, NESTED, ChoiceGrammar(("ABCDE", "ABXYZ", "QQ")), RegexGrammar("(AB)*"))
VOCABULARY = Vocabulary(
    [bytes([64 + i]) if i else b"" for i in range(VOCAB_SIZE)], (EOS_ID,), VOCAB_SIZE
)

type Open = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def open_rig() -> AsyncIterator[Open]:
    rigs: list[Rig] = []

    async def open_one(*args: Any, **kwargs: Any) -> Rig:
        rigs.append(Rig(*args, **kwargs))
        await rigs[-1].actor.start()
        return rigs[-1]

    yield open_one
    for rig in rigs:
        await rig.close()


def prompt_of(seed: int, length: int = 40) -> list[int]:
    return np.random.default_rng(seed).integers(1, VOCAB_SIZE, length).tolist()


def expected(prompt: list[int], grammar: GrammarSpec, max_tokens: int) -> tuple[list[int], str]:
    """What the fake runner draws under a grammar, and how it ends."""
    matcher = GrammarCompiler(GrammarMemory(VOCABULARY)).compile(grammar).matcher()
    prefix_hash = 0
    for token_id in prompt:
        prefix_hash = extend_hash(prefix_hash, token_id)
    answer: list[int] = []
    row = np.zeros(VOCABULARY.row_len, np.uint32)
    while len(answer) < max_tokens:
        if matcher.finished:
            return answer, "stop"
        matcher.fill_mask(row)
        allowed = VOCABULARY.tokens_in(row).tolist()
        answer.append(allowed[draw(prefix_hash, 0) % len(allowed)])
        assert matcher.advance(answer[-1])
        if answer[-1] == EOS_ID:
            return answer, "stop"
        prefix_hash = extend_hash(prefix_hash, answer[-1])
    return answer, "stop" if matcher.finished else "length"


def ask(
    rig: Rig, request_id: str, grammar: GrammarSpec | None, prompt: list[int], **sampling: Any
) -> None:
    params = SamplingParams(seed=0, grammar=grammar, **{"max_tokens": 24, **sampling})
    rig.actor.deliver(Admit(request_id, prompt, params))


def check_answer(
    rig: Rig, request_id: str, grammar: GrammarSpec, prompt: list[int], max_tokens: int = 24
) -> None:
    tokens, how = expected(prompt, grammar, max_tokens)
    assert rig.tokens(request_id) == tokens
    finish = rig.finish(request_id)
    assert finish is not None and finish.kind == how


def refusals(rig: Rig) -> dict[str, str]:
    return {m.request_id: m.message for m in rig.sent if isinstance(m, Refused)}


@pytest.mark.parametrize("overlap", [True, False])
async def test_every_answer_follows_its_grammar_and_the_others_are_as_ever(open_rig, overlap):
    rig = await open_rig(overlap=overlap)
    prompts = {f"{n} {k}": prompt_of(n) for n in range(3) for k in range(len(GRAMMARS))}
    for request_id, prompt in prompts.items():
        ask(rig, request_id, GRAMMARS[int(request_id[-1])], prompt)
        rig.admit(f"free {request_id}", prompt, 12)
        await asyncio.sleep(0)
    await rig.ended(*prompts, *(f"free {request_id}" for request_id in prompts))
    for request_id, prompt in prompts.items():
        check_answer(rig, request_id, GRAMMARS[int(request_id[-1])], prompt)
        assert rig.tokens(f"free {request_id}") == expected_tokens(prompt, 12, ignore_eos=True)
    await rig.check_idle()


async def test_rows_with_a_grammar_overlap_too(open_rig):
    """Step n + 1 is dispatched before the draws of step n are known."""
    runner = HeldRunner()
    rig = await open_rig(runner)
    ask(rig, "r", LETTERS, prompt_of(1, 4))
    await until(lambda: len(runner.plans) == 2)
    assert rig.tokens("r") == []
    assert runner.plans[1].token_ids.tolist() == [-1]
    runner.let_all_end()
    await rig.ended("r")
    check_answer(rig, "r", LETTERS, prompt_of(1, 4))


@pytest.mark.parametrize("failing_step", [0, 2, 5])
async def test_after_a_failed_step_answers_go_on(open_rig, failing_step):
    rig = await open_rig(FakeRunner(failing_steps={failing_step}))
    for n, grammar in enumerate(GRAMMARS):
        ask(rig, str(n), grammar, prompt_of(n))
    await rig.ended(*map(str, range(len(GRAMMARS))))
    for n, grammar in enumerate(GRAMMARS):
        check_answer(rig, str(n), grammar, prompt_of(n))
    await rig.check_idle()


async def test_retracted_answers_go_on(open_rig):
    rig = await open_rig(FakeRunner(make_limits(num_pages=65)))
    long = RegexGrammar("[A-Z]{60}[a-z]{40}")
    for n in range(8):
        ask(rig, str(n), long, prompt_of(n, 4), max_tokens=110)
    await rig.ended(*map(str, range(8)))
    assert rig.actor.stats().requests_retracted > 0
    for n in range(8):
        check_answer(rig, str(n), long, prompt_of(n, 4), 110)
    await rig.check_idle()


async def test_a_grammar_that_cannot_be_compiled_is_refused_alone(open_rig):
    rig = await open_rig()
    rig.admit("free", prompt_of(0), 12)
    ask(rig, "bad", RegexGrammar("(a"), prompt_of(1))
    ask(rig, "good", LETTERS, prompt_of(2))
    await rig.ended("free", "good")
    await until(lambda: "bad" in rig.released)
    assert "unterminated subpattern" in refusals(rig)["bad"]
    assert rig.rows("bad") == []
    check_answer(rig, "good", LETTERS, prompt_of(2))
    await rig.check_idle()


async def test_what_ends_where_the_grammar_leaves_nothing_to_add(open_rig):
    """Whatever `ignore_eos` and `min_tokens` say, and without an end token."""
    rig = await open_rig()
    ask(rig, "r", ChoiceGrammar(("ABCDE",)), prompt_of(1), ignore_eos=True, min_tokens=10)
    await rig.ended("r")
    assert bytes(b for t in rig.tokens("r") for b in TOKEN_BYTES[t]) == b"ABCDE"
    assert rig.finish("r") == Finish("stop")


async def test_min_tokens_holds_the_end_back_while_there_is_another_way(open_rig):
    rig = await open_rig()
    for n in range(8):
        ask(rig, str(n), RegexGrammar("(AB)*"), prompt_of(n), min_tokens=13)
    await rig.ended(*map(str, range(8)))
    for n in range(8):
        # The 13th may end it, but only after a whole pair; so the 13th is an A.
        assert len(rig.tokens(str(n))) >= 13


async def test_stop_tokens_only_where_the_grammar_can_end(open_rig):
    rig = await open_rig()
    stop = TOKEN_BYTES.index(b"B")
    for n in range(8):
        ask(
            rig, str(n), RegexGrammar("[AB]{4}C?"), prompt_of(n),
            stop_token_ids=(stop,), ignore_eos=True,
        )  # fmt: skip
    await rig.ended(*map(str, range(8)))
    for n in range(8):
        text = b"".join(TOKEN_BYTES[t] for t in rig.tokens(str(n)))
        assert text in (b"AAAA", b"AAAAB", b"AAAAC")
        assert rig.finish(str(n)).kind == "stop"


class SlowConstraint(Constraint):
    """Masks take until the test permits them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.permits = threading.Semaphore(1)

    def try_prepare(self) -> bool:
        return False

    def prepare(self) -> None:
        with self._lock:
            if self.settled(self.taken_len):
                return
        self.permits.acquire()
        super().prepare()


class SlowGrammars(GrammarActor):
    """Gives requests constraints whose masks the test holds back."""

    def __init__(self) -> None:
        super().__init__(lambda: VOCABULARY)
        self.made: list[SlowConstraint] = []

    async def constrain(
        self, sampling: SamplingParams, answer_ids: Sequence[int] = ()
    ) -> Constraint:
        assert sampling.grammar is not None
        grammar = await self.compile(sampling.grammar)
        constraint = SlowConstraint(grammar.matcher(), VOCABULARY, max_tokens=sampling.max_tokens)
        constraint.prepare()
        self.made.append(constraint)
        return constraint


@pytest.mark.parametrize("overlap", [True, False])
async def test_a_late_mask_holds_up_nobody_else(open_rig, overlap):
    grammars = SlowGrammars()
    rig = await open_rig(overlap=overlap, grammars=grammars)
    ask(rig, "slow", LETTERS, prompt_of(1))
    await until(lambda: len(rig.tokens("slow")) == 1)
    rig.admit("free", prompt_of(2), 30)
    await until(lambda: "free" in rig.released)
    assert rig.tokens("free") == expected_tokens(prompt_of(2), 30, ignore_eos=True)
    assert len(rig.tokens("slow")) == 1
    # One mask at a time, with others to go on with in between.
    for n in range(2, 6):
        rig.admit(f"free {n}", prompt_of(n), 10)
        grammars.made[0].permits.release()
        await until(lambda n=n: len(rig.tokens("slow")) == n)
    grammars.made[0].permits.release(100)
    await rig.ended("slow", *(f"free {n}" for n in range(2, 6)))
    check_answer(rig, "slow", LETTERS, prompt_of(1))
    for n in range(2, 6):
        assert rig.tokens(f"free {n}") == expected_tokens(prompt_of(n), 10, ignore_eos=True)
    await rig.check_idle()


async def test_an_abort_while_a_mask_is_late(open_rig):
    grammars = SlowGrammars()
    rig = await open_rig(grammars=grammars)
    ask(rig, "slow", LETTERS, prompt_of(1))
    rig.admit("free", prompt_of(2), 40)
    await until(lambda: len(rig.tokens("slow")) == 1)
    rig.actor.deliver(Abort("slow", "gone"))
    await rig.ended("free")
    grammars.made[0].permits.release(100)
    await rig.ended("slow")
    assert rig.finish("slow") == Finish("abort", message="gone")
    await rig.check_idle()


class UnsteadyConstraint(Constraint):
    """Some masks are ready at once, some are late."""

    def try_prepare(self) -> bool:
        return self.taken_len % 3 != 0 and super().try_prepare()

    def prepare(self) -> None:
        time.sleep(0.002 * (self.taken_len % 4))
        super().prepare()


class UnsteadyGrammars(GrammarActor):
    def __init__(self) -> None:
        super().__init__(lambda: VOCABULARY)

    async def constrain(
        self, sampling: SamplingParams, answer_ids: Sequence[int] = ()
    ) -> Constraint:
        assert sampling.grammar is not None
        grammar = await self.compile(sampling.grammar)
        constraint = UnsteadyConstraint(
            grammar.matcher(), VOCABULARY, max_tokens=sampling.max_tokens
        )
        constraint.prepare()
        return constraint


@pytest.mark.parametrize("failing_steps", [set(), {7, 23, 24}])
async def test_late_masks_retractions_and_failures_together(open_rig, failing_steps):
    runner = FakeRunner(make_limits(num_pages=65), failing_steps=failing_steps)
    rig = await open_rig(runner, grammars=UnsteadyGrammars())
    long = RegexGrammar("[A-Z]{60}[a-z]{40}")
    for n in range(10):
        ask(rig, str(n), long, prompt_of(n, 4), max_tokens=110)
    for n in range(4):
        rig.admit(f"free {n}", prompt_of(n, 5), 20)
    await rig.ended(*map(str, range(10)), *(f"free {n}" for n in range(4)))
    for n in range(10):
        check_answer(rig, str(n), long, prompt_of(n, 4), 110)
    for n in range(4):
        assert rig.tokens(f"free {n}") == expected_tokens(prompt_of(n, 5), 20, ignore_eos=True)
    assert rig.actor.stats().requests_retracted > 0
    await rig.check_idle()


async def test_an_answer_is_led_to_an_end_before_its_tokens_run_out(open_rig):
    rig = await open_rig()
    for n in range(6):
        for strict in (True, False):
            ask(
                rig, f"{n} {strict}", RegexGrammar(r"\[[A-Za-h]{20,90}\]"), prompt_of(n),
                max_tokens=60, strict_complete=strict, ignore_eos=True,
            )  # fmt: skip
    await rig.ended(*(f"{n} {strict}" for n in range(6) for strict in (True, False)))
    ends = [rig.finish(f"{n} True").kind for n in range(6)]
    assert ends == ["stop"] * 6
    assert {rig.finish(f"{n} False").kind for n in range(6)} >= {"length"}


class HeldGrammars(GrammarActor):
    """Compiles nothing until the test says so."""

    def __init__(self) -> None:
        super().__init__(lambda: VOCABULARY)
        self.go = asyncio.Event()
        self.num_waiting = 0

    async def constrain(
        self, sampling: SamplingParams, answer_ids: Sequence[int] = ()
    ) -> Constraint:
        self.num_waiting += 1
        try:
            await self.go.wait()
        finally:
            self.num_waiting -= 1
        return await super().constrain(sampling, answer_ids)


async def test_a_request_waits_for_its_grammar_and_can_be_aborted_or_expire(open_rig):
    grammars = HeldGrammars()
    rig = await open_rig(grammars=grammars)
    for name in ("kept", "aborted"):
        ask(rig, name, LETTERS, prompt_of(1))
    sampling = SamplingParams(seed=0, max_tokens=5, grammar=LETTERS)
    rig.actor.deliver(Admit("late", prompt_of(1), sampling, timeout_s=0.05))
    rig.admit("free", prompt_of(2), 12)
    await rig.ended("free")
    assert rig.actor.stats().num_waiting >= 2
    rig.actor.deliver(Abort("aborted", "gone"))
    await rig.ended("aborted", "late")
    assert rig.finish("aborted") == Finish("abort", message="gone")
    assert rig.finish("late").kind == "deadline"
    await until(lambda: grammars.num_waiting == 1)
    rig.scheduler.check()
    grammars.go.set()
    await rig.ended("kept")
    check_answer(rig, "kept", LETTERS, prompt_of(1))
    await rig.check_idle()


async def test_draining_ends_what_waits_for_its_grammar(open_rig):
    grammars = HeldGrammars()
    rig = await open_rig(grammars=grammars)
    ask(rig, "r", LETTERS, prompt_of(1))
    await until(lambda: grammars.num_waiting == 1)
    rig.actor.deliver(Drain(0))
    await rig.ended("r")
    assert rig.finish("r").kind == "shutdown"
    assert await asyncio.wait_for(asyncio.shield(rig.actor.died), 20) is None
    assert grammars.num_waiting == 0


async def test_a_matcher_that_breaks_ends_its_own_request(open_rig, caplog):
    class Breaking(SlowGrammars):
        async def constrain(
            self, sampling: SamplingParams, answer_ids: Sequence[int] = ()
        ) -> Constraint:
            constraint = await GrammarActor.constrain(self, sampling, answer_ids)
            constraint._matcher.advance = lambda token_id: 1 / 0  # pyright: ignore
            return constraint

    rig = await open_rig(grammars=Breaking())
    ask(rig, "broken", LETTERS, prompt_of(1))
    rig.admit("free", prompt_of(2), 12)
    await rig.ended("broken", "free")
    assert rig.finish("broken").kind == "error"
    assert rig.tokens("free") == expected_tokens(prompt_of(2), 12, ignore_eos=True)
    assert "a matcher broke" in caplog.text
    await rig.check_idle()


async def test_without_a_tokenizer_grammars_are_refused(open_rig):
    rig = await open_rig(no_grammars=True)
    ask(rig, "r", LETTERS, prompt_of(1))
    await until(lambda: "r" in rig.released)
    assert refusals(rig) == {"r": "grammars are not served here"}
    await rig.check_idle()
