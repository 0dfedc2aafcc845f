import asyncio

import pytest

from jaxsgl.actors.mailbox import Mailbox, MailboxClosed, MailboxFull
from tests.actors.cancelling import cancel_at_every_await


async def test_control_overtakes_data_and_each_lane_keeps_its_order():
    mailbox = Mailbox[str](8)
    for message in ("a", "b"):
        mailbox.try_put(message)
    for message in ("X", "Y"):
        mailbox.try_put(message, control=True)
    assert [await mailbox.get() for _ in range(4)] == ["X", "Y", "a", "b"]


async def test_a_full_data_lane_refuses_data_and_takes_control():
    mailbox = Mailbox[int](2)
    mailbox.try_put(1)
    mailbox.try_put(2)
    with pytest.raises(MailboxFull):
        mailbox.try_put(3)
    mailbox.try_put(4, control=True)
    assert mailbox.drain() == [4, 1, 2]
    assert mailbox.statistics().num_refused == 1
    assert mailbox.statistics().num_received == 3
    assert mailbox.statistics().max_waiting == 3
    assert mailbox.statistics().num_waiting == 0


async def test_put_waits_for_room():
    mailbox = Mailbox[int](1)
    mailbox.try_put(1)
    second = asyncio.create_task(mailbox.put(2))
    await asyncio.sleep(0)
    assert not second.done()
    assert await mailbox.get() == 1
    await second
    assert await mailbox.get() == 2


async def test_drain_makes_room_for_waiting_senders():
    mailbox = Mailbox[int](1)
    mailbox.try_put(0)
    senders = [asyncio.create_task(mailbox.put(n)) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    got = mailbox.drain()
    while len(got) < 4:
        got.append(await mailbox.get())
    await asyncio.gather(*senders)
    assert sorted(got) == [0, 1, 2, 3]


async def test_closing_wakes_senders_and_lets_out_what_is_in():
    mailbox = Mailbox[int](1)
    mailbox.try_put(1)
    sender = asyncio.create_task(mailbox.put(2))
    await asyncio.sleep(0)
    mailbox.close()
    mailbox.close()
    with pytest.raises(MailboxClosed):
        await sender
    with pytest.raises(MailboxClosed):
        mailbox.try_put(3, control=True)
    assert await mailbox.get() == 1
    with pytest.raises(MailboxClosed):
        await mailbox.get()


async def test_closing_wakes_a_receiver():
    mailbox = Mailbox[int](1)
    receiver = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    mailbox.close()
    with pytest.raises(MailboxClosed):
        await receiver


async def test_a_cancelled_put_has_put_nothing():
    mailbox = Mailbox[int](1)
    sent: list[int] = []
    got: list[int] = []

    async def put_two_for_a_slow_reader():
        for n in (1, 2):
            await mailbox.put(n)
            sent.append(n)
            asyncio.get_running_loop().call_soon(lambda: got.extend(mailbox.drain()))

    async def conserved(was_cancelled: bool):
        await asyncio.sleep(0)
        got.extend(mailbox.drain())
        assert got == sent
        await asyncio.wait_for(mailbox.put(0), 20)  # the room is not lost either
        assert mailbox.drain() == [0]

    assert await cancel_at_every_await(put_two_for_a_slow_reader, conserved) >= 2


async def test_a_cancelled_get_has_taken_nothing():
    mailbox = Mailbox[int](4)
    got: list[int] = []

    async def get_one():
        asyncio.get_running_loop().call_soon(mailbox.try_put, 7)
        got.append(await mailbox.get())

    async def conserved(was_cancelled: bool):
        await asyncio.sleep(0)
        got.extend(mailbox.drain())
        assert len(got) == mailbox.statistics().num_received

    assert await cancel_at_every_await(get_one, conserved) >= 2


def test_a_mailbox_holds_at_least_one_message():
    with pytest.raises(ValueError):
        Mailbox[int](0)
