"""Who gets in, in which order, and that no place is lost."""

import asyncio
import random

from jaxsgl.offline.gate import Gate


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_those_without_a_place_get_in_in_the_order_they_came():
    gate, inside = Gate(2), []

    async def visit(name: str) -> None:
        assert await gate.enter(name)
        inside.append(name)

    visits = [asyncio.create_task(visit(name)) for name in "abcde"]
    await turns()
    assert inside == ["a", "b"]
    gate.leave()
    await turns()
    assert inside == ["a", "b", "c"]
    gate.leave()
    gate.leave()
    await asyncio.gather(*visits)
    assert inside == list("abcde")


async def test_a_wait_that_is_called_off_ends_without_a_place():
    gate = Gate(1)
    assert await gate.enter("a")
    waits = [asyncio.create_task(gate.enter(name)) for name in "bc"]
    await turns()
    gate.call_off("b")
    gate.call_off("nobody")
    assert await waits[0] is False
    gate.leave()
    assert await waits[1] is True
    gate.call_off("c")
    gate.leave()
    assert await asyncio.wait_for(gate.enter("d"), 1)


async def test_no_place_is_lost_however_waits_end():
    rng = random.Random(0)
    for _ in range(200):
        gate = Gate(2)
        num_inside = 0

        async def visit(name: str, gate: Gate = gate) -> None:
            nonlocal num_inside
            if not await gate.enter(name):
                return
            num_inside += 1
            assert num_inside <= 2
            try:
                await asyncio.sleep(0)
            finally:
                num_inside -= 1
                gate.leave()

        visits = {name: asyncio.create_task(visit(name)) for name in "abcdefgh"}
        for _ in range(12):
            name = rng.choice("abcdefgh")
            if rng.random() < 0.5:
                visits[name].cancel()
            else:
                gate.call_off(name)
            await asyncio.sleep(0)
        await asyncio.gather(*visits.values(), return_exceptions=True)
        assert num_inside == 0
        assert await gate.enter("y") and await asyncio.wait_for(gate.enter("z"), 1)
