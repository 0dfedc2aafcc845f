import asyncio
import socket

import pytest

from jaxsgl.actors.messages import Abort, Admit, Drain, Progress, Stop
from jaxsgl.interface import SamplingParams
from jaxsgl.replicas import link as link_module
from jaxsgl.replicas.frames import FrameError, from_front_decoder, from_replica_decoder
from jaxsgl.replicas.link import SocketLink, memory_pair
from tests.actors.cancelling import cancel_at_every_await
from tests.replicas.recorder import Recorder


class Pair:
    """Both ends of a link: what `front` sends, `at_replica` records, and the other way round."""

    def __init__(self) -> None:
        self.at_front, self.at_replica = Recorder(), Recorder()

    async def connect(self, kind: str) -> None:
        if kind == "memory":
            self.front, self.replica = memory_pair(self.at_front, self.at_replica)
            return
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        _, self.front = await loop.create_connection(
            lambda: SocketLink(from_replica_decoder, self.at_front), sock=one
        )
        _, self.replica = await loop.create_connection(
            lambda: SocketLink(from_front_decoder, self.at_replica), sock=other
        )

    async def close(self) -> None:
        self.front.close()
        self.replica.close()
        async with asyncio.timeout(10):
            await asyncio.wait({self.front.closed, self.replica.closed})


@pytest.fixture(params=["memory", "socket"])
async def pair(request):
    pair = Pair()
    await pair.connect(request.param)
    yield pair
    await pair.close()


@pytest.fixture
async def sockets():
    pair = Pair()
    await pair.connect("socket")
    yield pair
    await pair.close()


def admit(n: int, *, num_ids: int = 1) -> Admit:
    return Admit(f"r{n}", [n] * num_ids, SamplingParams())


async def test_messages_arrive_both_ways_in_order(pair):
    for n in range(100):
        pair.front.send(admit(n))
        pair.replica.send(Progress("loading", n, 100))
    assert await pair.at_replica.until(100) == [admit(n) for n in range(100)]
    assert await pair.at_front.until(100) == [Progress("loading", n, 100) for n in range(100)]


async def test_control_overtakes_what_waits(pair):
    pair.front.send(admit(1))
    pair.front.send(admit(2))
    pair.front.send(Abort("r1", "gone"))  # not before the request it is for
    pair.front.send(Drain(5.0))
    assert await pair.at_replica.until(4) == [Drain(5.0), admit(1), admit(2), Abort("r1", "gone")]


async def test_closing_sends_what_waits_and_tells_both_once(pair):
    for n in range(50):
        pair.front.send(admit(n))
    pair.front.close()
    pair.front.close()
    pair.front.send(admit(51))
    async with asyncio.timeout(10):
        await pair.replica.closed
        await pair.front.closed
    await asyncio.sleep(0)
    assert pair.at_replica.messages == [admit(n) for n in range(50)]
    assert pair.at_replica.causes == pair.at_front.causes == [None]
    pair.replica.send(Progress("late", 0, 0))
    await pair.replica.room()
    assert not pair.at_front.messages


async def test_what_is_sent_in_one_turn_leaves_in_one_write(sockets):
    writes: list[int] = []
    transport = sockets.front._transport
    write = transport.write
    transport.write = lambda data: (writes.append(len(data)), write(data))
    for n in range(64):
        sockets.front.send(admit(n))
    await sockets.at_replica.until(64)
    assert len(writes) == 1


async def test_a_peer_that_does_not_read_is_waited_for_and_control_still_overtakes(sockets):
    sockets.replica._transport.pause_reading()
    num_sent = 0
    while sockets.front._has_room.is_set():
        sockets.front.send(admit(num_sent, num_ids=50_000))
        num_sent += 1
        await asyncio.sleep(0)
    waiting = asyncio.create_task(sockets.front.room())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    sockets.front.send(Stop())
    sockets.replica._transport.resume_reading()
    await asyncio.wait_for(waiting, 10)
    messages = await sockets.at_replica.until(num_sent + 1)
    assert [a for a in messages if a != Stop()] == [
        admit(n, num_ids=50_000) for n in range(num_sent)
    ]
    assert messages.index(Stop()) < num_sent


async def test_a_peer_that_never_reads_is_taken_for_dead(sockets, monkeypatch):
    monkeypatch.setattr(link_module, "_MAX_UNSENT_BYTES", 4 << 20)
    sockets.replica._transport.pause_reading()
    for n in range(10_000):
        sockets.front.send(admit(n, num_ids=50_000))
        await asyncio.sleep(0)
        if sockets.front.closed.done():
            break
    assert isinstance(sockets.at_front.causes[0], FrameError)
    await asyncio.wait_for(sockets.front.room(), 1)
    sockets.replica._transport.resume_reading()


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02\xc1\xc1", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"],
)
async def test_garbage_ends_the_link_of_the_reader_and_so_the_writers(sockets, garbage):
    sockets.front._transport.write(garbage)
    async with asyncio.timeout(10):
        await asyncio.wait({sockets.replica.closed, sockets.front.closed})
        await asyncio.sleep(0)
    assert isinstance(sockets.at_replica.causes[0], FrameError)
    assert not sockets.at_replica.messages
    assert len(sockets.at_front.causes) == 1


async def test_waiting_for_room_cancelled_at_any_await_loses_nothing(pair):
    num_sent = 0

    async def send():
        nonlocal num_sent
        await pair.front.room()
        pair.front.send(admit(num_sent))
        num_sent += 1
        await asyncio.sleep(0)

    async def conserved(was_cancelled: bool):
        assert await pair.at_replica.until(num_sent) == [admit(n) for n in range(num_sent)]

    assert await cancel_at_every_await(send, conserved) >= 1
