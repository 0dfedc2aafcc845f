import asyncio

import pytest

from jaxsgl.actors.output_stream import OutputStream, merge_rows
from jaxsgl.interface import Finish, TokenLogprob, Unavailable
from jaxsgl.scheduling.outputs import RowOutput
from tests.actors.cancelling import cancel_at_every_await


def row(n: int, *, finish: Finish | None = None, **more) -> RowOutput:
    """The n-th row of a request: token n, whose text is its number and a space."""
    return RowOutput("r", [n], b"%d " % n, 5, n, 3, finish, **more)


async def test_a_reader_that_keeps_up_gets_each_row_as_it_came():
    stream = OutputStream()
    for n in (1, 2, 3):
        taking = asyncio.create_task(stream.take())
        await asyncio.sleep(0)
        pushed = row(n)
        stream.push(pushed)
        assert await taking is pushed


async def test_a_slow_reader_gets_rows_merged():
    stream = OutputStream()
    for n in range(1, 1001):
        stream.push(row(n, finish=Finish("length") if n == 1000 else None))
    merged = await stream.take()
    assert merged.token_ids == list(range(1, 1001))
    assert merged.data == b"".join(b"%d " % n for n in range(1, 1001))
    assert (merged.prompt_tokens, merged.completion_tokens, merged.cached_tokens) == (5, 1000, 3)
    assert merged.finish == Finish("length")


async def test_a_failure_comes_after_the_rows_before_it():
    stream = OutputStream()
    stream.push(row(1))
    stream.fail(Unavailable("gone"))
    assert (await stream.take()).token_ids == [1]
    for _ in range(2):
        with pytest.raises(Unavailable):
            await stream.take()


async def test_a_failure_wakes_the_reader():
    stream = OutputStream()
    taking = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    stream.fail(Unavailable("gone"))
    with pytest.raises(Unavailable):
        await taking


def test_log_probabilities_are_merged_in_order():
    first = row(1, logprobs=[TokenLogprob(1, -0.5)], prompt_logprobs=[None, TokenLogprob(9, -1.0)])
    second = row(2, logprobs=[TokenLogprob(2, -0.25)])
    merged = merge_rows([first, second])
    assert merged.logprobs == [TokenLogprob(1, -0.5), TokenLogprob(2, -0.25)]
    assert merged.prompt_logprobs == [None, TokenLogprob(9, -1.0)]
    assert merge_rows([row(1), row(2)]).logprobs is None


async def test_a_cancelled_take_has_taken_nothing():
    stream = OutputStream()
    num_pushed = 0
    got: list[int] = []

    def push():
        nonlocal num_pushed
        num_pushed += 1
        stream.push(row(num_pushed))

    async def take():
        asyncio.get_running_loop().call_soon(push)
        got.extend((await stream.take()).token_ids)

    async def conserved(was_cancelled: bool):
        await asyncio.sleep(0)
        if len(got) < num_pushed:
            got.extend((await stream.take()).token_ids)
        assert got == list(range(1, num_pushed + 1))

    assert await cancel_at_every_await(take, conserved) >= 2
