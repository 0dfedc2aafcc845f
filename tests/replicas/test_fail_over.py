"""What becomes of requests, and of the server, when replicas die, in processes of their own."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import count

import psutil
import pytest

from jaxsgl.interface import DeadlineExceeded, Delta, EngineError, Finish, Unavailable
from jaxsgl.replicas.restarts import RestartPolicy
from tests.actors.waiting import until
from tests.replicas.conftest import Front, Limits, ask

MANY_RESTARTS = RestartPolicy(max_restarts=1000, first_delay_s=0.01, max_delay_s=0.01)
NUM_STREAMS = 32


def children(front: Front) -> list[psutil.Process]:
    """Of each replica that lives, by id."""
    launches = [seat.proxy._launch for seat in front.pool._seats if seat.proxy]
    return [psutil.Process(launch.process_id) for launch in launches]


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # between the two
        return True


def num_up(front: Front) -> int:
    return sum(seat.is_up for seat in front.pool._seats)


class Load:
    """Streams without end: each asks again when it has its answer. Every answer is checked."""

    def __init__(
        self, front: Front, num_streams: int = NUM_STREAMS, *, may_be_refused: bool = False
    ) -> None:
        """`may_be_refused`: a request that finds no replica ready is asked again a little later."""
        self.num_answers = 0
        self._front = front
        self._may_be_refused = may_be_refused
        self._stopping = False
        self._ids = count()
        self._streams = [asyncio.create_task(self._stream()) for _ in range(num_streams)]

    async def _stream(self) -> None:
        while not self._stopping:
            n = next(self._ids)
            text = f"{n % 1000:03d}"
            try:
                deltas = await self._front.deltas(ask(f"load {n}", text, 60))
            except Unavailable:
                if not self._may_be_refused:
                    raise
                await asyncio.sleep(0.01)
                continue
            assert "".join(delta.text for delta in deltas) == text * 20
            assert [token for delta in deltas for token in delta.token_ids] == list(
                (text * 20).encode()
            )
            assert deltas[-1].finish == Finish("length")
            assert deltas[-1].usage.completion_tokens == 60
            self.num_answers += 1

    async def more(self, num_answers: int) -> None:
        """Returns when so many more streams have ended well; raises what went wrong in one."""
        wanted = self.num_answers + num_answers
        await until(lambda: self.num_answers >= wanted or any(s.done() for s in self._streams), 60)
        for stream in self._streams:
            if stream.done():
                stream.result()

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._streams)


async def kill_again_and_again(
    front: Front, num_deaths: int, *, noticed_within_s: float = 60
) -> None:
    """Each death is noticed by the end of the link, long before a pulse could be missed."""
    rng, load = random.Random(0), Load(front)
    for _ in range(num_deaths):
        await until(lambda: num_up(front) == 2)
        await asyncio.sleep(rng.uniform(0, 0.05))
        victim = rng.choice(children(front))
        before_s = asyncio.get_running_loop().time()
        victim.kill()
        await until(lambda: num_up(front) == 1)
        assert asyncio.get_running_loop().time() - before_s < noticed_within_s
        assert front.pool.ready and front.pool.alive
    await load.more(NUM_STREAMS)
    await load.stop()
    await front.check_idle()
    assert not len(front.pool._requests._quarantine)


async def test_no_stream_notices_that_replicas_are_killed(open_front):
    front = await open_front(in_process=True, dp=2, policy=MANY_RESTARTS)
    await kill_again_and_again(front, 10)


@pytest.mark.long
async def test_no_stream_notices_that_replicas_are_killed_fifty_times(open_front):
    front = await open_front(in_process=True, dp=2, policy=MANY_RESTARTS)
    await kill_again_and_again(front, 50, noticed_within_s=1)


@pytest.mark.usefixtures("quick_beats")
async def test_a_frozen_replica_is_found_and_what_it_says_later_is_not_heard(open_front):
    limits = [Limits(), Limits()]
    front = await open_front(in_process=True, dp=2, policy=MANY_RESTARTS, limits=limits)
    load, frozen = Load(front, 8), children(front)[0]
    await load.more(8)
    frozen.suspend()
    limits[0].busy_s = 5
    await until(lambda: num_up(front) == 1)
    limits[0].busy_s = math.inf
    await until(lambda: is_gone(frozen))  # so it cannot be woken
    await until(lambda: num_up(front) == 2)
    await load.more(16)
    await load.stop()
    await front.check_idle()


@pytest.mark.usefixtures("quick_beats")
async def test_a_frozen_replica_with_nothing_to_do_is_found_by_probing(open_front):
    limits = [Limits(), Limits()]
    front = await open_front(in_process=True, dp=2, policy=MANY_RESTARTS, limits=limits)
    frozen = children(front)[1]
    frozen.suspend()
    limits[1].probe_period_s = 5
    await until(lambda: not front.pool._seats.of(1).is_up)
    limits[1].probe_period_s = math.inf
    await until(lambda: is_gone(frozen))
    await until(lambda: num_up(front) == 2)
    await front.check_idle()


@pytest.mark.usefixtures("quick_beats")
async def test_an_idle_replica_that_answers_probes_lives(open_front):
    front = await open_front(limits=[Limits(probe_period_s=5)])
    await until(lambda: front.replicas[0].num_probes >= 2)
    assert num_up(front) == 1 and len(front.replicas) == 1


async def test_poison_is_found_by_running_alone_and_everybody_else_finishes(open_front, caplog):
    """`raise` makes its replica exit with 70."""
    front = await open_front(in_process=True, dp=2, policy=MANY_RESTARTS)
    # While the poison moves on, both replicas may be dead at a time.
    load = Load(front, may_be_refused=True)
    await load.more(NUM_STREAMS)
    with pytest.raises(EngineError) as caught:
        await front.answer(ask("poison", "raise", 20))
    assert (caught.value.status, caught.value.code) == (500, "request_quarantined")
    await until(lambda: front.pool.ready)
    with pytest.raises(EngineError) as caught:  # whoever sends it again, nothing dies of it
        await front.answer(ask("again", "raise", 20))
    assert caught.value.code == "request_quarantined"
    await load.more(NUM_STREAMS)
    await load.stop()
    await until(lambda: num_up(front) == 2)
    assert sum(seat.epoch for seat in front.pool._seats) <= 3
    await front.check_idle()


async def test_when_all_are_dead_new_requests_are_refused_and_old_ones_wait(open_front):
    policy = RestartPolicy(max_restarts=3, first_delay_s=0.3)
    front = await open_front(in_process=True, dp=2, policy=policy)
    # A stream whose answer ended just before the kills asks anew, and is new then.
    load = Load(front, 8, may_be_refused=True)
    await load.more(8)
    for child in children(front):
        child.kill()
    await until(lambda: num_up(front) == 0)
    assert not front.pool.ready
    with pytest.raises(Unavailable, match="no replica is ready"):
        await front.answer(ask("new", "abc", 3))
    await until(lambda: not front.pool.alive)
    await until(lambda: num_up(front) == 2)
    assert front.pool.ready and front.pool.alive
    await load.more(16)
    await load.stop()
    await front.check_idle()


async def test_beyond_what_may_be_dead_the_pool_fails_but_what_it_has_goes_on(open_front, caplog):
    caplog.set_level(logging.INFO)
    front = await open_front(in_process=True, dp=2, max_unhealthy=0, policy=MANY_RESTARTS)
    load = Load(front, 8)
    await load.more(8)
    children(front)[1].kill()
    assert "SIGKILL" in str(await asyncio.shield(front.pool.failed))
    assert not front.pool.alive
    assert "CPU 1 became unresponsive. Removed from scheduling pool." in caplog.messages
    assert "Active CPUs: [0]. Total capacity reduced by 50%." in caplog.messages
    load._stopping = True
    await front.pool.drain(60)
    await load.stop()
    assert load.num_answers >= 16
    front.check_books()


@pytest.mark.parametrize("in_process", [False, True])
async def test_a_rolling_restart_fails_no_request(open_front, in_process: bool):
    front = await open_front(in_process=in_process, dp=2, max_unhealthy=0)
    load = Load(front)
    for seat in front.pool._seats:
        await load.more(8)
        front.pool.restart_replica(seat.replica_id)
        await until(lambda seat=seat: seat.epoch == 1 and seat.is_up)
    await load.more(NUM_STREAMS)
    await load.stop()
    assert not front.pool.failed.done()
    assert [report.epoch for report in front.pool.replicas()] == [1, 1]
    await until(lambda: not front.num_open())
    front.check_books()


async def test_a_replica_that_is_drained_stays_out_until_it_is_restarted(open_front):
    front = await open_front(dp=2, max_unhealthy=0)
    front.pool.drain_replica(1)
    await until(lambda: front.pool.replicas()[1].state == "stopped")
    assert front.pool.num_devices == 1
    assert front.pool.alive and front.pool.ready and not front.pool.failed.done()
    assert (
        await asyncio.gather(*(front.answer(ask(f"{n}", "ab", 4)) for n in range(8)))
        == ["abab"] * 8
    )
    front.pool.restart_replica(1)
    await until(lambda: front.pool.num_devices == 2)
    front.check_books()


async def test_what_does_not_end_in_time_moves_when_its_replica_is_restarted(open_front):
    front = await open_front(dp=2, balancing="round-robin")
    front.pool._seats.of(0)._rules = front.pool._seats.of(1)._rules = _drain_at_once(front)
    reading = front.pool.generate(ask("r", "abc", 60))
    text = (await anext(reading)).text
    front.replicas[0].is_held = True
    front.pool.restart_replica(0)
    text += "".join([delta.text async for delta in reading])
    assert text == "abc" * 20
    assert front.replicas[1].admitted[-1].told is not None
    await until(lambda: front.pool._seats.of(0).is_up)
    front.check_books()


def _drain_at_once(front: Front):
    rules = front.pool._seats.of(0)._rules
    return type(rules)(rules.policy, rules.limits, drain_timeout_s=0.01)


async def held_without_replica(front: Front) -> asyncio.Task[Delta]:
    """A request that has begun and whose replica has died, with none to follow for a while."""
    reading = front.pool.generate(ask("r", "stall", 50))
    await anext(reading)
    reading_on = asyncio.create_task(_until_quiet(reading))
    front.replicas[0]._fail()
    await until(lambda: front.pool._requests._entrance.num_inside == 1)
    return reading_on


async def _until_quiet(reading: AsyncGenerator[Delta, None]) -> Delta:
    async with aclosing(reading):
        async for delta in reading:
            if delta.finish is not None:
                return delta
    raise AssertionError("an answer without an end")


SLOW_RESTART = RestartPolicy(first_delay_s=60)


async def test_an_abort_reaches_a_request_that_is_at_no_replica(open_front):
    front = await open_front(policy=SLOW_RESTART)
    reading_on = await held_without_replica(front)
    front.pool.abort("r")
    last = await reading_on
    assert last.finish == Finish("abort", message="aborted by request")
    assert last.usage.completion_tokens >= 1
    front.check_books()


async def test_a_deadline_holds_while_a_request_is_at_no_replica(open_front):
    front = await open_front(policy=SLOW_RESTART)
    reading = front.pool.generate(ask("r", "stall", 50))
    await anext(reading)
    front.pool._requests._journeys["r"]._deadline_s = time.monotonic() + 0.2
    front.replicas[0]._fail()
    with pytest.raises(DeadlineExceeded):
        await _until_quiet(reading)
    front.check_books()


async def test_a_reader_may_leave_while_its_request_is_at_no_replica(open_front):
    front = await open_front(policy=SLOW_RESTART)
    reading_on = await held_without_replica(front)
    reading_on.cancel()
    await asyncio.wait({reading_on})
    front.check_books()


async def test_a_stop_ends_requests_that_are_at_no_replica(open_front):
    front = await open_front(policy=SLOW_RESTART)
    reading_on = await held_without_replica(front)
    await front.pool.stop()
    with pytest.raises(Unavailable):
        await reading_on
    front.check_books()


async def test_a_suspect_runs_alone(open_front):
    """And others wait, or run elsewhere, meanwhile."""
    front = await open_front(dp=2, balancing="round-robin")
    reading = front.pool.generate(ask("suspect", "ab", 60))
    await anext(reading)
    journey = front.pool._requests._journeys["suspect"]
    journey.was_at_death()
    journey.was_at_death()
    assert journey.is_suspect
    at = front.pool._requests._dispatcher.place_of(journey).seat
    other = front.pool._seats.of(1 - at.replica_id)
    front.replicas[at.replica_id]._fail()
    async with aclosing(reading):
        alone_somewhere, crowd = False, []
        async for _ in reading:
            place = front.pool._requests._dispatcher.place_of(journey)
            if journey.is_alone and place is not None:
                assert place.seat.num_open <= 1 == place.seat.load.num_in_flight
                if not alone_somewhere:
                    alone_somewhere = True
                    crowd = [asyncio.create_task(front.answer(ask(f"{n}", "x", 9))) for n in (1, 2)]
        assert alone_somewhere
    assert await asyncio.gather(*crowd) == ["x" * 9] * 2
    assert other.is_up
    await until(lambda: not front.num_open())
    front.check_books()
