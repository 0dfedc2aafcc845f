"""The loop of a replica against a runner whose answers can be worked out by hand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest

from jaxsgl.actors.mailbox import MailboxClosed, MailboxFull
from jaxsgl.actors.messages import (
    Abort,
    Admit,
    Drain,
    Drained,
    FlushCache,
    Released,
    Reply,
    StepOutputs,
    Stop,
)
from jaxsgl.interface import Finish, SamplingParams
from tests.actors.scheduler_rig import CAPACITY, HeldRunner, Rig
from tests.actors.waiting import until
from tests.fake_runner import EOS_ID, VOCAB_SIZE, FakeRunner, expected_tokens, make_limits

PROMPT_LEN = 40
"""More than one step holds, so that prompts come in two chunks."""
NUM_TOKENS = 8
NUM_STEPS = 2 + NUM_TOKENS - 1
"""Of one request alone: two chunks, the second of which draws, and a step per further token."""

type Open = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def open_rig() -> AsyncIterator[Open]:
    """Starts rigs; after the test each must end with nothing left of it."""
    rigs: list[Rig] = []

    async def open_one(runner: FakeRunner | None = None, *, overlap: bool = True) -> Rig:
        rigs.append(Rig(runner, overlap=overlap))
        await rigs[-1].actor.start()
        return rigs[-1]

    yield open_one
    for rig in rigs:
        await rig.close()


def make_prompt(seed: int, length: int = PROMPT_LEN) -> list[int]:
    return np.random.default_rng(seed).integers(1, VOCAB_SIZE, length).tolist()


def answer_to(prompt: list[int], num_tokens: int = NUM_TOKENS) -> list[int]:
    return expected_tokens(prompt, num_tokens, ignore_eos=True)


async def steps_taken_in(rig: Rig, num_ended: int, depth: int) -> None:
    """Returns when that many steps of the only request, "r", were taken in, and as many are in
    flight as may be."""
    await until(lambda: len(rig.tokens("r")) >= num_ended - 1)
    await until(lambda: len(rig.runner.plans) >= min(NUM_STEPS, num_ended + depth))
    assert len(rig.tokens("r")) == max(0, num_ended - 1)
    assert len(rig.runner.plans) == min(NUM_STEPS, num_ended + depth)


@pytest.mark.parametrize("overlap", [True, False])
async def test_answers_are_those_of_undisturbed_requests(open_rig, overlap):
    rig = await open_rig(overlap=overlap)
    prompts = {f"r{n}": make_prompt(n, 5 + 3 * n) for n in range(CAPACITY)}
    for request_id, prompt in prompts.items():
        rig.admit(request_id, prompt, 20, ignore_eos=False)
    await rig.ended(*prompts)
    for request_id, prompt in prompts.items():
        answer = expected_tokens(prompt, 20)
        assert rig.tokens(request_id) == answer
        matched = EOS_ID if answer[-1] == EOS_ID else None
        assert rig.finish(request_id) == Finish("length" if matched is None else "stop", matched)
    assert sorted(rig.released) == sorted(prompts)
    await rig.check_idle()


async def test_what_takes_how_long_is_told(open_rig):
    rig = await open_rig()
    for n in range(3):
        rig.admit(f"r{n}", make_prompt(n))
    await rig.ended("r0", "r1", "r2")
    stats = rig.actor.stats()
    assert sum(stats.queue_time.counts) == 3 and stats.queue_time.sum_s >= 0
    assert sum(stats.step_time.counts) == stats.steps > 0
    assert sum(stats.mask_time.counts) == 0
    await rig.check_idle()


@pytest.mark.parametrize(("overlap", "depth"), [(True, 2), (False, 1)])
async def test_steps_run_ahead_of_results_by_the_overlap(open_rig, overlap, depth):
    runner = HeldRunner()
    rig = await open_rig(runner, overlap=overlap)
    rig.admit("r", make_prompt(0))
    for num_ended in range(NUM_STEPS):
        await steps_taken_in(rig, num_ended, depth)
        runner.permits.release()
    await rig.ended("r")
    assert rig.tokens("r") == answer_to(make_prompt(0))


@pytest.mark.parametrize(("overlap", "depth"), [(True, 2), (False, 1)])
@pytest.mark.parametrize("num_ended", range(NUM_STEPS))
async def test_an_abort_at_every_step(open_rig, overlap, depth, num_ended):
    """Whatever is in flight, the request ends once, with a prefix of its answer."""
    runner = HeldRunner()
    rig = await open_rig(runner, overlap=overlap)
    prompt, neighbour = make_prompt(0), make_prompt(1, 3)
    rig.admit("r", prompt)
    if num_ended:
        runner.permits.release(num_ended)
    await steps_taken_in(rig, num_ended, depth)
    rig.actor.deliver(Abort("r", "enough"))
    rig.admit("neighbour", neighbour)
    runner.let_all_end()
    await rig.ended("r", "neighbour")
    # The step that is waited for while the abort comes is still taken in.
    num_tokens = num_ended
    assert rig.tokens("r") == answer_to(prompt)[:num_tokens]
    if num_tokens < NUM_TOKENS:
        assert rig.finish("r") == Finish("abort", message="enough")
    else:
        assert rig.finish("r") == Finish("length")
    assert rig.tokens("neighbour") == answer_to(neighbour)
    await rig.check_idle()


async def test_an_abort_before_its_turn_and_of_nobody(open_rig):
    runner = HeldRunner(make_limits(num_slots=1))
    rig = await open_rig(runner)
    rig.admit("running", make_prompt(0))
    rig.admit("waiting", make_prompt(1))
    rig.admit("next", make_prompt(2))
    await until(lambda: len(runner.plans) == 2)
    rig.actor.deliver(Abort("waiting", "gone"))
    rig.actor.deliver(Abort("waiting", "gone twice"))
    rig.actor.deliver(Abort("never heard of", "?"))
    runner.let_all_end()
    await rig.ended("running", "waiting", "next")
    assert rig.finish("waiting") == Finish("abort", message="gone")
    assert rig.tokens("waiting") == []
    assert rig.tokens("next") == answer_to(make_prompt(2))
    assert sorted(rig.released) == ["next", "running", "waiting"]
    await rig.check_idle()


@pytest.mark.parametrize("busy", [True, False])
async def test_an_abort_right_behind_its_request(open_rig, busy):
    runner = HeldRunner()
    rig = await open_rig(runner)
    if busy:
        rig.admit("running", make_prompt(0))
        await until(lambda: len(runner.plans) == 2)
    rig.admit("r", make_prompt(1))
    rig.actor.deliver(Abort("r", "gone"))
    runner.let_all_end()
    await rig.ended("r", *(["running"] if busy else []))
    assert rig.finish("r") == Finish("abort", message="gone")
    assert rig.tokens("r") == []
    await rig.check_idle()


async def test_a_full_mailbox_refuses_requests_but_not_the_end(open_rig):
    runner = HeldRunner()
    rig = await open_rig(runner)
    rig.admit("r", make_prompt(0))
    await until(lambda: len(runner.plans) == 2)
    for n in range(CAPACITY):
        rig.admit(f"later {n}", make_prompt(n + 1, 4))
    with pytest.raises(MailboxFull):
        rig.admit("one too many", make_prompt(0))
    rig.actor.deliver(Stop())
    runner.let_all_end()
    assert await asyncio.wait_for(asyncio.shield(rig.actor.died), 20) is None
    # Those that nobody had looked at are told, too, and take no step.
    for request_id in ("r", *(f"later {n}" for n in range(CAPACITY))):
        assert rig.finish(request_id) == Finish("shutdown", message="the server is stopping")
    assert len(rig.released) == CAPACITY + 1
    assert len(runner.plans) == 2
    rig.check_books()


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("failing_step", range(NUM_STEPS))
async def test_answers_are_whole_after_a_failed_step(open_rig, caplog, overlap, failing_step):
    runner = FakeRunner(failing_steps={failing_step})
    rig = await open_rig(runner, overlap=overlap)
    prompts = {f"r{n}": make_prompt(n, 10 + 10 * n) for n in range(4)}
    for request_id, prompt in prompts.items():
        rig.admit(request_id, prompt)
    await rig.ended(*prompts)
    for request_id, prompt in prompts.items():
        assert rig.tokens(request_id) == answer_to(prompt)
        assert rig.finish(request_id) == Finish("length")
    assert f"step {failing_step} failed on purpose" in caplog.text
    await rig.check_idle()


async def test_a_step_that_cannot_be_dispatched_is_a_failed_step(open_rig, caplog):
    class Refusing(FakeRunner):
        def dispatch(self, plan, masks=None):
            if plan.step_id == 3:
                raise ValueError("no program fits")
            return super().dispatch(plan)

    rig = await open_rig(Refusing())
    rig.admit("r", make_prompt(0))
    await rig.ended("r")
    assert rig.tokens("r") == answer_to(make_prompt(0))
    assert "no program fits" in caplog.text
    await rig.check_idle()


async def test_a_request_whose_steps_always_fail_is_given_up(open_rig, caplog):
    runner = FakeRunner(failing_steps=set(range(1000)))
    rig = await open_rig(runner)
    rig.admit("r", make_prompt(0))
    await rig.ended("r")
    assert rig.finish("r") == Finish("error", message="the step failed repeatedly")
    runner.failing_steps.clear()
    await rig.check_idle()


async def test_a_device_that_cannot_be_brought_back_is_the_end(open_rig, caplog):
    class Lost(FakeRunner):
        def reset(self):
            if self.plans:
                raise RuntimeError("the device is lost")
            super().reset()

    rig = await open_rig(Lost(failing_steps={1}))
    rig.admit("r", make_prompt(0))
    cause = await asyncio.wait_for(asyncio.shield(rig.actor.died), 20)
    assert str(cause) == "the device is lost"
    with pytest.raises(MailboxClosed):
        rig.admit("r2", make_prompt(0))


async def test_draining_lets_what_runs_and_waits_finish(open_rig):
    runner = HeldRunner(make_limits(num_slots=1))
    rig = await open_rig(runner)
    rig.admit("running", make_prompt(0))
    await until(lambda: len(runner.plans) == 2)
    rig.admit("waiting", make_prompt(1))
    rig.actor.deliver(Drain(3600))
    runner.let_all_end()
    assert await asyncio.wait_for(asyncio.shield(rig.actor.died), 20) is None
    assert rig.tokens("running") == answer_to(make_prompt(0))
    assert rig.tokens("waiting") == answer_to(make_prompt(1))
    assert rig.sent[-1] == Drained()
    rig.check_books()


async def test_draining_without_time_ends_what_runs(open_rig):
    runner = HeldRunner()
    rig = await open_rig(runner)
    rig.admit("r", make_prompt(0), 50)
    runner.permits.release(4)
    await until(lambda: len(runner.plans) == 6)
    rig.actor.deliver(Drain(0))
    runner.let_all_end()
    assert await asyncio.wait_for(asyncio.shield(rig.actor.died), 20) is None
    assert rig.finish("r") == Finish("shutdown", message="the server is stopping")
    assert rig.tokens("r") == answer_to(make_prompt(0), 50)[: len(rig.tokens("r"))]
    assert isinstance(rig.sent[-2], Released) and rig.sent[-1] == Drained()
    rig.check_books()


async def test_draining_when_idle(open_rig):
    rig = await open_rig()
    rig.actor.deliver(Drain(3600))
    assert await asyncio.wait_for(asyncio.shield(rig.actor.died), 20) is None
    assert rig.sent == [Drained()]


@pytest.mark.parametrize("busy", [True, False])
async def test_stop(open_rig, busy):
    runner = HeldRunner()
    rig = await open_rig(runner)
    if busy:
        rig.admit("r", make_prompt(0))
        await until(lambda: len(runner.plans) == 2)
    rig.actor.deliver(Stop())
    runner.let_all_end()
    assert await asyncio.wait_for(asyncio.shield(rig.actor.died), 20) is None
    if busy:
        assert rig.finish("r") == Finish("shutdown", message="the server is stopping")
        assert rig.released == ["r"]
    with pytest.raises(MailboxClosed):
        rig.admit("r2", make_prompt(0))
    rig.check_books()


@pytest.mark.parametrize("num_turns", range(0, 40, 3))
async def test_killed_at_any_moment_it_leaves_no_task_and_no_thread(open_rig, num_turns):
    """What is left is checked when the rig closes."""
    rig = await open_rig()
    for n in range(4):
        rig.admit(f"r{n}", make_prompt(n), 50)
    for _ in range(num_turns):
        await asyncio.sleep(0)
    await rig.actor.stop(0)
    assert rig.actor.died.done() and rig.actor.died.result() is None


async def test_flushing_forgets_what_no_request_holds(open_rig):
    rig = await open_rig()
    rig.admit("r", make_prompt(0))
    await rig.ended("r")
    assert rig.actor.stats().pages_cached > 0
    rig.actor.deliver(FlushCache(5))
    await until(lambda: rig.sent[-1] == Reply(5))
    assert rig.actor.stats().pages_cached == 0
    await rig.check_idle()


async def test_a_refused_request_is_told_why_and_harms_nobody(open_rig):
    runner = HeldRunner()
    rig = await open_rig(runner)
    rig.admit("r", make_prompt(0))
    await until(lambda: len(runner.plans) == 2)
    rig.admit("too long", make_prompt(1, runner.limits.max_context_len))
    rig.admit("empty", [])
    runner.permits.release()
    await rig.ended("too long", "empty")
    assert rig.finish("too long") == Finish("error", message="a prompt of 128 tokens; 1 to 127 fit")
    assert rig.finish("empty") == Finish("error", message="a prompt of 0 tokens; 1 to 127 fit")
    runner.let_all_end()
    await rig.ended("r")
    assert rig.tokens("r") == answer_to(make_prompt(0))
    await rig.check_idle()


async def test_an_id_in_use_does_not_disturb_its_owner(open_rig):
    runner = HeldRunner()
    rig = await open_rig(runner)
    rig.admit("r", make_prompt(0))
    await until(lambda: len(runner.plans) == 2)
    rig.admit("r", make_prompt(1))
    runner.permits.release()
    await until(lambda: rig.rows("r"))
    refused = rig.rows("r")[0]
    assert refused.finish == Finish("error", message="request id r is in use")
    rig.sent.clear()
    runner.let_all_end()
    await rig.ended("r")
    assert rig.tokens("r") == answer_to(make_prompt(0))
    await rig.check_idle()


async def test_a_deadline_ends_a_request(open_rig):
    rig = await open_rig()
    sampling = SamplingParams(max_tokens=50, seed=0, ignore_eos=True)
    rig.actor.deliver(Admit("late", make_prompt(0), sampling, timeout_s=0.0))
    rig.admit("patient", make_prompt(1))
    await rig.ended("late", "patient")
    finish = rig.finish("late")
    assert finish is not None and finish.kind == "deadline"
    assert rig.tokens("patient") == answer_to(make_prompt(1))
    await rig.check_idle()


async def test_one_message_per_step_however_many_rows(open_rig):
    rig = await open_rig(HeldRunner())
    for n in range(6):
        rig.admit(f"r{n}", make_prompt(n, 4))
    rig.runner.let_all_end()
    await rig.ended(*(f"r{n}" for n in range(6)))
    outputs = [message for message in rig.sent if isinstance(message, StepOutputs)]
    assert len(outputs) == NUM_TOKENS == len(rig.runner.plans)
    assert all(len(out.rows) == 6 for out in outputs)


async def test_recompiles_of_the_runner_are_reported(open_rig):
    rig = await open_rig(FakeRunner(recompiles=3))
    assert rig.actor.stats().recompiles == 3


async def test_an_idle_replica_whose_books_do_not_add_up_starts_over(open_rig, caplog):
    rig = await open_rig()
    prompt = make_prompt(0)
    rig.admit("r", prompt)
    await rig.ended("r")
    rig.scheduler._places._free_slots.pop()  # a slot is lost
    rig.actor._next_check_s = 0.0
    rig.admit("s", prompt)
    await rig.ended("s")
    await until(lambda: rig.actor.stats().cache_rebuilds == 1)
    assert "do not add up" in caplog.text
    rig.scheduler.check()
