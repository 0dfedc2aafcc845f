import asyncio

import pytest

from jaxsgl.interface import EngineError, Finish, InvalidRequest, Unavailable
from jaxsgl.replicas.request_table import RequestTable
from jaxsgl.scheduling.outputs import RowOutput


def row(request_id: str, finish: Finish | None = None) -> RowOutput:
    return RowOutput(request_id, [7], b"x", 1, 1, 0, finish)


async def test_an_id_is_in_use_until_the_replica_has_released_it():
    table = RequestTable()
    table.open("r")
    table.push(row("r", Finish("stop")))
    table.leave("r")
    with pytest.raises(InvalidRequest):
        table.open("r")
    table.release("r")
    assert len(table) == 0
    table.open("r")


async def test_a_refused_request_is_over():
    table = RequestTable()
    stream = table.open("r")
    table.refuse("r", InvalidRequest("no"))
    table.refuse("unknown", InvalidRequest("no"))
    with pytest.raises(InvalidRequest, match="no"):
        await stream.take()
    assert not table.start_abort("r")
    table.release("r")
    assert len(table) == 0


async def test_one_abort_is_sent_for_a_running_request_and_none_for_others():
    table = RequestTable()
    assert not table.start_abort("unknown")
    table.open("r")
    assert table.start_abort("r")
    assert not table.start_abort("r")
    table.open("s")
    table.push(row("s", Finish("length")))
    assert not table.start_abort("s")


async def test_an_abort_still_reaches_a_request_whose_reader_has_gone():
    table = RequestTable()
    table.open("r")
    table.leave("r")
    assert table.start_abort("r")


async def test_rows_that_nobody_reads_are_dropped():
    table = RequestTable()
    stream = table.open("r")
    table.leave("r")
    table.push(row("r"))
    table.push(row("unknown"))
    taking = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    assert not taking.done()
    taking.cancel()


async def test_the_death_of_the_replica_fails_what_had_not_finished():
    table = RequestTable()
    finished, running = table.open("f"), table.open("r")
    table.push(row("f", Finish("stop")))
    table.fail_all(Unavailable("gone"))
    assert len(table) == 0
    assert (await finished.take()).finish == Finish("stop")
    with pytest.raises(Unavailable):
        await running.take()
    table.leave("r")
    assert not table.start_abort("r")


async def test_a_release_without_an_end_does_not_leave_the_reader_waiting():
    table = RequestTable()
    stream = table.open("r")
    table.release("r")
    table.release("r")
    with pytest.raises(EngineError):
        await stream.take()
