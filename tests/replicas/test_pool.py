import asyncio
import random
from collections.abc import AsyncGenerator

import msgspec
import pytest

from jaxsgl.actors.messages import Progress
from jaxsgl.actors.service import State
from jaxsgl.interface import (
    ChatPrompt,
    Delta,
    EngineError,
    Finish,
    GenerateRequest,
    InvalidRequest,
    QueueFull,
    ReplicaLatency,
    TokenLogprob,
    TokenPrompt,
    Unavailable,
    Usage,
)
from jaxsgl.replicas.launch import StartError
from jaxsgl.replicas.restarts import RestartPolicy
from tests.actors.cancelling import cancel_at_every_await
from tests.actors.waiting import until
from tests.replicas.conftest import ask
from tests.replicas.fake_replica import CONTEXT_LEN, NUM_SLOTS


async def test_an_answer(open_front):
    front = await open_front()
    deltas = await front.deltas(ask("r", "abc", 5, logprobs=0))
    assert "".join(delta.text for delta in deltas) == "abcab"
    assert [token_id for delta in deltas for token_id in delta.token_ids] == list(b"abcab")
    assert [entry for delta in deltas for entry in delta.logprobs] == [
        TokenLogprob(token_id, -0.5) for token_id in b"abcab"
    ]
    assert deltas[-1].finish == Finish("length")
    assert deltas[-1].usage == Usage(3, 5, 0)
    assert all(delta.finish is None for delta in deltas[:-1])
    assert front.progress == [Progress("loading", 0, 1), Progress("loading", 1, 1)]
    await front.check_idle()


async def test_the_kinds_of_prompt(open_front):
    front = await open_front()
    tokens = GenerateRequest(request_id="t", prompt=TokenPrompt([104, 105]))
    assert await front.answer(tokens) == "hi" * ((CONTEXT_LEN - 2) // 2)
    chat = ChatPrompt([{"role": "user", "content": "hi"}])
    assert (
        await front.answer(GenerateRequest(request_id="c", prompt=chat))
        == ("user:hi\nassistant:" * CONTEXT_LEN)[: CONTEXT_LEN - 18]
    )


async def test_text_comes_in_whole_characters_and_ends_with_what_is_left(open_front):
    front = await open_front()
    deltas = await front.deltas(ask("r", "é🙂", 5))
    assert all("\ufffd" not in delta.text for delta in deltas[:-1])
    assert "".join(delta.text for delta in deltas) == "é\ufffd"
    assert sum(len(delta.token_ids) for delta in deltas) == 5


async def test_a_slow_reader_gets_fewer_and_larger_deltas(open_front):
    front = await open_front()
    reading = front.pool.generate(ask("r", "ab", 50))
    first = await anext(reading)
    await until(lambda: not front.replicas[0].running)
    await asyncio.sleep(0.01)
    rest = [delta async for delta in reading]
    assert len(rest) == 1
    assert first.text + "".join(delta.text for delta in rest) == "ab" * 25


async def test_many_at_once_do_not_mix(open_front):
    front = await open_front()
    prompts = [f"{n:03d}" for n in range(100)]
    answers = await asyncio.gather(*(front.answer(ask(text, text, 6)) for text in prompts))
    assert answers == [text * 2 for text in prompts]
    await front.check_idle()


async def test_seeds_are_chosen_for_requests_that_bring_none(open_front):
    seeds = []
    for random_seed in (1, 1, 2):
        front = await open_front(random_seed=random_seed)
        for n in range(3):
            await front.answer(ask(f"r{n}", "a", 1))
        await front.answer(ask("own", "a", 1, seed=5))
        seeds.append([admit.sampling.seed for admit in front.replicas[0].admitted])
    assert seeds[0] == seeds[1] != seeds[2]
    assert len(set(seeds[0])) == 4 and seeds[0][3] == 5


@pytest.mark.parametrize(
    ("request_", "param", "code"),
    [
        (ask("r", ""), "prompt", None),
        (ask("r", "a", -1), "max_tokens", None),
        (ask("r", "a", temperature=float("nan")), "temperature", None),
        (ask("r", "a", logit_bias={256: 1.0}), "logit_bias", None),
        (ask("r", "a", CONTEXT_LEN), "prompt", "context_length_exceeded"),
        (ask("r", "a" * CONTEXT_LEN), "prompt", "context_length_exceeded"),
    ],
)
async def test_a_request_that_cannot_be_served_is_refused_before_the_first_delta(
    open_front, request_, param, code
):
    front = await open_front()
    with pytest.raises(InvalidRequest) as caught:
        await anext(front.pool.generate(request_))
    assert (caught.value.param, caught.value.code) == (param, code)
    assert not front.replicas[0].admitted
    await front.check_idle()


async def test_an_id_in_use_is_refused_and_its_owner_undisturbed(open_front):
    front = await open_front()
    first = asyncio.create_task(front.answer(ask("r", "ab", 50)))
    await until(lambda: front.replicas[0].running)
    with pytest.raises(InvalidRequest):
        await front.answer(ask("r", "cd", 50))
    assert await first == "ab" * 25
    await front.check_idle()


async def test_more_than_can_run_and_wait_are_refused(open_front):
    front = await open_front(max_queued_requests=3)
    await until(lambda: front.pool.stats().slots_total == NUM_SLOTS)
    answers = await asyncio.gather(
        *(front.answer(ask(f"r{n}", "ab", 60)) for n in range(20)), return_exceptions=True
    )
    assert sum(answer == "ab" * 30 for answer in answers) == 3 + NUM_SLOTS
    assert sum(isinstance(answer, QueueFull) for answer in answers) == 20 - 3 - NUM_SLOTS
    await front.check_idle()


class Lagging:
    """Keeps requests from leaving for a replica that does not read, until `free` is set."""

    def __init__(self, front, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = asyncio.Event()
        self.num_held = 0
        monkeypatch.setattr(front.proxy, "room", self._room)

    async def _room(self) -> None:
        self.num_held += 1
        await self.free.wait()


async def test_those_kept_from_a_replica_that_lags_are_counted(open_front, monkeypatch):
    front = await open_front(max_queued_requests=3)
    await until(lambda: front.pool.stats().slots_total == NUM_SLOTS)
    lagging = Lagging(front, monkeypatch)
    most = 3 + NUM_SLOTS
    asking = [asyncio.create_task(front.answer(ask(f"r{n}", "ab", 6))) for n in range(most)]
    await until(lambda: lagging.num_held == most)
    with pytest.raises(QueueFull):
        await front.answer(ask("one too many", "ab", 6))
    lagging.free.set()
    assert await asyncio.gather(*asking) == ["ababab"] * most
    await front.check_idle()


async def test_drain_lets_those_finish_that_were_let_in_but_have_not_left_yet(
    open_front, monkeypatch
):
    front = await open_front()
    lagging = Lagging(front, monkeypatch)
    asking = asyncio.create_task(front.answer(ask("r", "ab", 6)))
    await until(lambda: lagging.num_held)
    draining = asyncio.create_task(front.pool.drain(60))
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await front.answer(ask("late", "ab", 6))
    lagging.free.set()
    assert await asking == "ababab"
    await draining


async def test_a_drain_does_not_wait_longer_than_it_may(open_front, monkeypatch):
    front = await open_front()
    lagging = Lagging(front, monkeypatch)
    asking = asyncio.create_task(front.answer(ask("r", "ab", 6)))
    await until(lambda: lagging.num_held)
    await front.pool.drain(0.01)
    lagging.free.set()
    with pytest.raises(Unavailable):
        await asking


async def test_closing_the_generator_aborts(open_front):
    front = await open_front()
    reading = front.pool.generate(ask("r", "ab", 60))
    await anext(reading)
    await reading.aclose()
    await front.check_idle()
    assert front.replicas[0].finished == ["abort", "length"]


async def test_an_abort_by_id_gives_the_reader_a_last_delta(open_front):
    front = await open_front()
    reading = front.pool.generate(ask("r", "ab", 60))
    await anext(reading)
    for _ in range(3):
        front.pool.abort("r")
        front.pool.abort("unknown")
    rest = [delta async for delta in reading]
    assert rest[-1].finish == Finish("abort", message="aborted by request")
    assert rest[-1].usage.completion_tokens < 60
    await front.check_idle()


async def test_cancelled_at_any_await_a_request_leaves_nothing(open_front):
    front = await open_front()

    async def conserved(was_cancelled: bool):
        await front.check_idle()

    num_cancelled = await cancel_at_every_await(
        lambda: front.answer(ask("r", "abc", 3)), conserved, max_turns=100_000
    )
    assert num_cancelled > 5
    assert "abort" in front.replicas[0].finished


def ask_to_hold(request_id: str, text: str, hold_s: float = 60.0) -> GenerateRequest:
    return msgspec.structs.replace(ask(request_id, text, 0), hold_s=hold_s)


async def test_what_is_held_is_let_go_by_name(open_front):
    front = await open_front()
    for request_id in ("a", "b-1", "b-2", "c"):
        assert await front.answer(ask_to_hold(request_id, request_id)) == ""
    holding = front.replicas[0].holding
    assert holding == {"a", "b-1", "b-2", "c"}
    front.pool.let_go("a")
    front.pool.let_go("nobody")
    front.pool.abort("b")  # ends what goes by that name, and what is held for it
    await until(lambda: holding == {"c"})
    await front.answer(ask_to_hold("c", "c again"))
    front.pool.abort_all()
    await until(lambda: not holding)
    assert not front.pool._requests._held._held
    await front.check_idle()


async def test_the_front_forgets_holds_whose_time_is_over(open_front):
    front = await open_front()
    now_s = 0.0
    front.pool._requests._held._clock = lambda: now_s
    for n in range(3):
        await front.answer(ask_to_hold(f"r{n}", "abc", 10.0))
        now_s += 6.0
    assert list(front.pool._requests._held._held) == ["r1", "r2"]


async def test_a_dead_replica_holds_nothing(open_front):
    front = await open_front()
    await front.answer(ask_to_hold("r", "abc"))
    front.replicas[0]._fail()
    await until(lambda: len(front.replicas) == 2 and front.pool.ready)
    front.pool.let_go("r")
    await front.answer(ask_to_hold("r", "abc"))
    assert front.replicas[1].holding == {"r"}
    await front.check_idle()


async def test_nothing_is_held_for_a_reader_who_left_before_the_answer(open_front):
    front = await open_front()

    async def conserved(was_cancelled: bool):
        front.pool.let_go("r")  # as somebody would who was answered in his last moment
        await until(lambda: not front.num_open())
        await until(lambda: not front.replicas[0].holding)
        await front.check_idle()

    num_cancelled = await cancel_at_every_await(
        lambda: front.answer(ask_to_hold("r", "abc")), conserved, max_turns=100_000
    )
    assert num_cancelled > 3


@pytest.mark.parametrize("hold_s", [0.0, -1.0, 601.0, float("nan"), float("inf")])
async def test_a_time_to_hold_that_makes_no_sense_is_refused(open_front, hold_s):
    front = await open_front()
    with pytest.raises(InvalidRequest, match="hold_s must be above 0 and at most 600"):
        await front.answer(ask_to_hold("r", "abc", hold_s))
    with pytest.raises(InvalidRequest, match="it needs 0 new tokens") as caught:
        await front.answer(msgspec.structs.replace(ask("r", "abc"), hold_s=5.0))
    assert caught.value.param == "hold_s"


async def test_a_thousand_random_aborts_leave_nothing(open_front):
    front = await open_front()
    rng = random.Random(0)

    async def request(n: int):
        length, num_read = rng.randint(10, 60), rng.randint(1, 9)
        reading = front.pool.generate(ask(f"r{n}", "abc", length))
        how = rng.randrange(4)
        if how == 0:  # somewhere on the way to the replica
            task = asyncio.create_task(anext(reading))
            for _ in range(num_read):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            return
        text = ""
        for _ in range(num_read):  # on a slow machine fewer deltas come, and larger ones
            delta = await anext(reading, None)
            text += "" if delta is None else delta.text
        if how == 1:
            await reading.aclose()
            return
        if how == 2:
            front.pool.abort(f"r{n}")
        text += "".join([delta.text async for delta in reading])
        assert ("abc" * 20).startswith(text)
        assert len(text) == length or how == 2

    for start in range(0, 1000, 50):
        await asyncio.gather(*(request(n) for n in range(start, start + 50)))
    await front.check_idle()
    assert front.replicas[0].finished.count("abort") > 100


async def test_the_cache_is_flushed_on_request(open_front):
    front = await open_front()
    await asyncio.gather(front.pool.flush_cache(), front.pool.flush_cache())
    assert front.replicas[0].num_flushed == 2
    with pytest.raises(EngineError, match="cannot"):
        await front.pool.flush_cache()

    async def conserved(was_cancelled: bool):
        assert not front.proxy._asks

    assert await cancel_at_every_await(front.pool.flush_cache, conserved) >= 1


async def test_what_the_front_knows_of_its_engine(open_front):
    front = await open_front(start=False)
    assert not front.pool.ready
    with pytest.raises(Unavailable):
        _ = front.pool.model
    with pytest.raises(Unavailable):
        await front.answer(ask("r", "a"))
    await front.pool.start()
    assert front.pool.ready and front.pool.alive
    assert front.pool.model.name == "echo"
    assert front.pool.notes[0].startswith("process")
    assert front.pool.token_bytes(97) == b"a" and front.pool.token_bytes(1000) == b""
    await until(lambda: front.pool.stats().slots_total == NUM_SLOTS)
    await front.pool.stop()
    assert not front.pool.ready and not front.pool.alive
    with pytest.raises(Unavailable):
        await front.answer(ask("r", "a"))


async def test_latencies_are_followed_on_order(open_front):
    for follows in (False, True):
        front = await open_front(follows_latency=follows)
        (before,) = front.pool.replicas()
        await front.answer(ask("r", "abcd"))
        (after,) = front.pool.replicas()
        if not follows:
            assert before.latency is after.latency is None
        else:
            assert before.latency == ReplicaLatency(excess_ttft_s=None, inter_token_s=None)
            assert after.latency.excess_ttft_s >= 0.0 and after.latency.inter_token_s >= 0.0


async def test_alive_while_it_starts_and_while_it_drains(open_front):
    front = await open_front("load-for-ever", start=False)
    starting = asyncio.create_task(front.pool.start())
    await until(lambda: front.progress)
    assert front.pool.alive and not front.pool.ready
    starting.cancel()
    await asyncio.wait({starting})
    front = await open_front()
    reading = front.pool.generate(ask("r", "ab", 60))
    await anext(reading)
    draining = asyncio.create_task(front.pool.drain(60))
    await asyncio.sleep(0)
    assert front.pool.alive and not front.pool.ready
    assert "".join([delta.text async for delta in reading]).endswith("ab")
    await draining


async def test_drain_lets_what_runs_finish_and_refuses_the_rest(open_front):
    front = await open_front()
    running = asyncio.create_task(front.answer(ask("r", "ab", 60)))
    await until(lambda: front.replicas[0].running)
    draining = asyncio.create_task(front.pool.drain(60))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await front.answer(ask("s", "ab"))
    assert await running == "ab" * 30
    await draining


async def test_what_has_not_finished_in_time_is_aborted(open_front):
    front = await open_front()
    reading = front.pool.generate(ask("r", "ab", 62))
    assert (await anext(reading)).finish is None
    await front.pool.drain(0.001)
    with pytest.raises(Unavailable, match="the server is stopping"):
        await _to_the_end(reading)


async def test_a_second_stop_does_not_wait_for_the_drain(open_front):
    front = await open_front()
    running = asyncio.create_task(front.deltas(ask("r", "ab", 62)))
    await until(lambda: front.replicas[0].running)
    front.replicas[0].is_held = True
    draining = asyncio.create_task(front.pool.drain(3600))
    await asyncio.sleep(0.01)
    await front.pool.stop()
    await draining
    with pytest.raises(Unavailable):
        await running


async def test_a_start_that_is_refused_is_not_tried_again(open_front):
    front = await open_front("refuse:no such file: a.gguf", start=False)
    with pytest.raises(StartError, match=r"^no such file: a\.gguf$"):
        await front.pool.start()
    assert front.progress == [Progress("loading", 0, 1)]
    assert not front.pool.alive


async def _to_the_end(reading: AsyncGenerator[Delta, None]) -> list[Delta]:
    return [delta async for delta in reading]


async def test_a_replica_that_fails_is_replaced_and_its_requests_go_on(open_front, caplog):
    front = await open_front(policy=RestartPolicy(first_delay_s=0.2))
    begun = front.pool.generate(ask("begun", "ab", 62))
    first = await anext(begun)
    assert first.finish is None
    front.replicas[0]._fail()
    await until(lambda: not front.pool.alive)
    assert not front.pool.ready
    with pytest.raises(Unavailable, match="no replica is ready"):
        await front.answer(ask("new", "ab", 62))
    rest = await _to_the_end(begun)
    assert first.text + "".join(delta.text for delta in rest) == "ab" * 31
    assert rest[-1].usage == Usage(2, 62, 0)
    assert front.pool.alive and front.pool.ready
    assert len(front.replicas) == 2
    (resumed,) = front.replicas[1].admitted
    assert 0 < len(resumed.told.token_ids) < 62
    await front.check_idle()


async def test_one_that_fails_too_often_is_given_up(open_front, caplog):
    front = await open_front(policy=RestartPolicy(max_restarts=2, first_delay_s=0.001))
    for n in range(3):
        await until(lambda n=n: front.pool.ready and len(front.replicas) == n + 1)
        front.replicas[-1]._fail()
    cause = await asyncio.wait_for(asyncio.shield(front.pool.failed), 60)
    assert "failed" in str(cause)
    assert len(front.replicas) == 3
    assert not front.pool.alive
    with pytest.raises(Unavailable):
        await front.answer(ask("late", "a", 1))
    front.check_books()


async def test_requests_of_a_replica_that_is_given_up_end_with_it(open_front, caplog):
    front = await open_front(policy=RestartPolicy(max_restarts=0))
    reading = front.pool.generate(ask("r", "ab", 62))
    await anext(reading)
    front.replicas[0]._fail()
    with pytest.raises(Unavailable, match="no replica is ready"):
        await _to_the_end(reading)
    front.check_books()


async def test_a_start_cancelled_at_any_await_leaves_nothing(open_front):
    fronts = []

    async def start():
        fronts.append(await open_front(start=False))
        await fronts[-1].pool.start()

    async def gone(was_cancelled: bool):
        if was_cancelled and fronts:
            proxy = fronts.pop().pool._seats.of(0).proxy
            assert proxy is None or proxy.state is State.DEAD

    assert await cancel_at_every_await(start, gone, max_turns=100_000) > 3
