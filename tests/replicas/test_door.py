import asyncio
import contextlib
import os
import stat
from pathlib import Path

import pytest

from jaxsgl.actors.messages import Progress, Stop
from jaxsgl.replicas.door import Door, enter
from jaxsgl.replicas.frames import Hello, encode_frame
from tests.actors.waiting import until
from tests.replicas.recorder import Recorder


@pytest.fixture
async def door():
    inside = Recorder()
    door = Door(inside)
    await door.listen()
    yield door, inside
    door.close()
    assert not Path(door.address).parent.exists()
    if door.opened.done():
        link = door.opened.result()
        link.close()
        await link.closed
    await asyncio.sleep(0)
    assert not door.strangers


async def test_only_this_user_can_reach_the_socket(door):
    path = door[0].address
    folder = os.stat(os.path.dirname(path))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert (stat.S_IMODE(folder.st_mode), folder.st_uid) == (0o700, os.getuid())


async def test_the_replica_is_let_in_and_heard(door):
    door, inside = door
    outside = Recorder()
    link = await enter(door.address, door.token, outside)
    link.send(Progress("loading", 0, 1))
    (await door.opened).send(Stop())
    assert await inside.until(1) == [Progress("loading", 0, 1)]
    assert await outside.until(1) == [Stop()]
    door.close()  # who is in stays in
    link.send(Progress("loading", 1, 1))
    assert len(await inside.until(2)) == 2
    link.close()
    await link.closed


async def is_shown_the_door(door: Door, first_bytes: bytes) -> bool:
    reader, writer = await asyncio.open_unix_connection(door.address)
    writer.write(first_bytes)
    try:
        async with asyncio.timeout(10):
            answer = await reader.read()
    except ConnectionResetError:
        answer = b""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return answer == b""


@pytest.mark.parametrize(
    "first_bytes",
    [
        encode_frame(Hello("0" * 64)),
        encode_frame(Hello("")),
        encode_frame(Hello("é\udc80".encode("utf-8", "replace").decode())),
        encode_frame(Progress("I am in a hurry", 0, 1)),
        encode_frame(Hello("0" * 2000)),
        b"\x00\x10\x00\x00",
        b"\x00\x00\x00\x01\xc1",
    ],
)
async def test_strangers_are_refused_and_the_replica_still_gets_in(door, first_bytes):
    door, inside = door
    assert await is_shown_the_door(door, bytes(first_bytes))
    assert not door.opened.done()
    outside = Recorder()
    link = await enter(door.address, door.token, outside)
    await asyncio.wait_for(door.opened, 10)
    assert not inside.messages and not inside.causes
    link.close()
    await link.closed


async def test_a_second_replica_is_refused(door, caplog):
    door, inside = door
    first = await enter(door.address, door.token, Recorder())
    await door.opened
    assert await is_shown_the_door(door, encode_frame(Hello(door.token)))
    first.send(Progress("loading", 0, 1))
    await inside.until(1)
    first.close()
    await first.closed
    assert not caplog.records


async def test_a_second_hello_ends_the_link(door):
    door, inside = door
    outside = Recorder()
    link = await enter(door.address, door.token, outside)
    link.send(Hello(door.token))
    await asyncio.wait_for(link.closed, 10)
    assert not inside.messages


async def test_closing_the_door_turns_silent_strangers_away(door):
    door, _ = door
    reader, writer = await asyncio.open_unix_connection(door.address)
    await until(lambda: door.strangers)
    door.close()
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
