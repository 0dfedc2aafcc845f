"""The load under a virtual clock: every moment is exact."""

import asyncio
import math

import pytest

from bench.serving.datasets import Turn
from bench.serving.driver import Load, LoadShape
from tests.bench.serving.virtual_clock import VirtualClock


class Answering:
    """Stands for client and server: an answer takes what `seconds` says of its turn's length."""

    def __init__(self, clock, seconds=1.0):
        self.clock, self.seconds = clock, seconds
        self.open = self.most_open = 0

    def start(self):
        async def send(record, turn):
            record.sent_s = self.clock.now_s()
            self.open += 1
            self.most_open = max(self.open, self.most_open)
            try:
                await self.clock.sleep(self.seconds)
                record.event_s.append(self.clock.now_s())
                record.error = "http_500" if turn.prompt == "fail" else None
            finally:
                self.open -= 1
                record.end_s = self.clock.now_s()

        return send


def singles(count):
    return [(Turn("hello", 4),)] * count


async def play(conversations, shape, seconds=1.0):
    clock = VirtualClock()
    answering = Answering(clock, seconds)
    load = Load(conversations, answering.start, shape, clock)
    await clock.play(load.run())
    return load, answering


def shape(
    arrivals=None, max_concurrency=None, duration_s=None, drain_s=1000.0, think_s=0.0
) -> LoadShape:
    return LoadShape(arrivals, max_concurrency, duration_s, drain_s, think_s)


async def test_a_closed_loop_keeps_so_many_open():
    load, answering = await play(singles(10), shape(max_concurrency=3))
    assert answering.most_open == 3
    assert [record.due_s for record in load.records] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert [record.conversation for record in load.records] == list(range(10))
    assert all(record.ok and record.e2e_s == 1 for record in load.records)
    assert load.sending_s == 3


async def test_an_open_loop_sends_whatever_the_server_does():
    load, answering = await play(singles(4), shape([0.5, 0.75, 1.0, 9.0]), seconds=5.0)
    assert [record.due_s for record in load.records] == [0.5, 0.75, 1.0, 9.0]
    assert [record.e2e_s for record in load.records] == [5.0] * 4
    assert answering.most_open == 3


async def test_the_wait_for_a_place_is_latency():
    load, answering = await play(singles(3), shape([0.0] * 3, max_concurrency=1), seconds=2.0)
    assert answering.most_open == 1
    assert [record.sent_s for record in load.records] == [0, 2, 4]
    assert [record.ttft_s for record in load.records] == [2, 4, 6]
    assert [record.send_lag_s for record in load.records] == [0, 2, 4]


async def test_a_client_that_is_late_does_not_make_the_server_look_fast():
    class LateClock(VirtualClock):
        async def sleep_until(self, moment_s):
            await super().sleep_until(moment_s + 3.0 if moment_s == 1.0 else moment_s)

    clock = LateClock()
    load = Load(singles(2), Answering(clock, 0.5).start, shape([1.0, 2.0]), clock)
    await clock.play(load.run())
    assert [record.sent_s for record in load.records] == [4.0, 4.0]
    assert [record.ttft_s for record in load.records] == [3.5, 2.5]


async def test_sending_stops_at_the_duration_and_what_is_open_is_waited_for():
    load, _ = await play(singles(100), shape([0.3 * n for n in range(100)], duration_s=1.0), 5.0)
    assert [record.due_s for record in load.records] == pytest.approx([0, 0.3, 0.6, 0.9])
    assert (load.sending_s, load.num_open_at_end) == (1.0, 4)
    assert all(record.ok for record in load.records)
    load, _ = await play(singles(100), shape(max_concurrency=2, duration_s=2.5))
    assert [record.due_s for record in load.records] == [0, 0, 1, 1, 2, 2]
    assert load.sending_s == 2.5


async def test_sending_stops_at_the_number_if_that_is_first():
    load, _ = await play(singles(3), shape([0.0, 0.5, 1.0], duration_s=60.0))
    assert len(load.records) == 3
    assert load.sending_s == 1.0


async def test_what_the_drain_cuts_off_is_the_clients_doing_if_the_server_spoke():
    load, answering = await play(
        singles(3), shape([0.0, 1.0, 1.0], max_concurrency=2, duration_s=1.5, drain_s=0.75),
        seconds=2.0,
    )  # fmt: skip
    assert [record.error for record in load.records] == [None, "unfinished", "unfinished"]
    assert [record.sent_s for record in load.records] == [0, 1, None]
    assert [record.end_s for record in load.records] == [2, 2.25, 2]
    assert not any(record.failed for record in load.records)
    assert answering.open == 0


@pytest.mark.parametrize("drain_s", [0.0, 29.0])
async def test_a_short_drain_does_not_make_a_server_fail(drain_s):
    load, _ = await play(singles(2), shape([0.0, 0.0], drain_s=drain_s), seconds=math.inf)
    assert [record.error for record in load.records] == ["unfinished", "unfinished"]


@pytest.mark.parametrize("last_words_s", [0.0, 9.0, 11.0])
async def test_a_server_that_has_gone_silent_has_failed(last_words_s):
    clock = VirtualClock()

    def start():
        async def send(record, turn):
            record.sent_s = clock.now_s()
            await clock.sleep(last_words_s)
            record.event_s.append(clock.now_s())
            await clock.sleep(math.inf)

        return send

    load = Load(singles(2), start, shape([0.0, 0.0], drain_s=40.0), clock)
    await clock.play(load.run())
    kind = "unfinished" if last_words_s > 10 else "silent"
    assert [(record.error, record.end_s) for record in load.records] == [(kind, 40.0)] * 2
    assert [record.failed for record in load.records] == [kind == "silent"] * 2


async def test_turns_follow_their_answers():
    conversations = [(Turn("a", 4), Turn("b", 4), Turn("c", 4))] * 2
    load, _ = await play(conversations, shape([0.0, 0.5], think_s=10.0), seconds=1.0)
    assert [(r.conversation, r.turn, r.due_s) for r in load.records] == [
        (0, 0, 0.0),
        (1, 0, 0.5),
        (0, 1, 11.0),
        (1, 1, 11.5),
        (0, 2, 22.0),
        (1, 2, 22.5),
    ]
    assert load.sending_s == 22.5


async def test_a_failed_turn_ends_its_conversation_alone():
    conversations = [(Turn("fail", 4), Turn("b", 4)), (Turn("a", 4), Turn("b", 4))]
    load, _ = await play(conversations, shape(max_concurrency=2))
    assert [(r.conversation, r.turn, r.error) for r in load.records] == [
        (0, 0, "http_500"),
        (1, 0, None),
        (1, 1, None),
    ]


async def test_no_turn_is_sent_after_the_duration():
    conversations = [(Turn("a", 4), Turn("b", 4))]
    load, _ = await play(conversations, shape([0.0], duration_s=2.0, think_s=5.0))
    assert [(record.turn, record.ok) for record in load.records] == [(0, True)]


@pytest.mark.parametrize("cancel_at_s", [0.5, 7.0], ids=["while sending", "while draining"])
async def test_a_cancelled_load_returns_what_there_is(cancel_at_s):
    clock = VirtualClock()
    answering = Answering(clock, 10.0)
    load = Load(singles(3), answering.start, shape([0.0, 0.1, 5.0]), clock)

    async def run():
        running = asyncio.create_task(load.run())
        await clock.sleep_until(cancel_at_s)
        running.cancel()
        await running

    await clock.play(run())
    assert load.interrupted
    assert {record.error for record in load.records} == {"unfinished"}
    assert answering.open == 0


@pytest.mark.parametrize("how", [shape([0.0, 0.0]), shape(max_concurrency=1)])
async def test_a_bug_ends_the_load_with_its_error(how):
    clock = VirtualClock()

    def start():
        async def send(record, turn):
            raise RuntimeError("on purpose")

        return send

    with pytest.raises(RuntimeError, match="on purpose"):
        await clock.play(Load(singles(2), start, how, clock).run())
