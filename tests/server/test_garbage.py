"""When all objects are gone through, and when they are not."""

from __future__ import annotations

import asyncio
import gc

import pytest

from server.garbage import (
    FEW_CLIENTS,
    MAX_DELAY_S,
    MIN_YOUNG_PASSES,
    collect_when_quiet,
    is_due,
    no_long_passes,
)
from server.turns import run_in_turns
from tests.actors.waiting import until


@pytest.mark.parametrize(
    ("num_young_passes", "num_clients", "since_s", "due"),
    [
        (MIN_YOUNG_PASSES, FEW_CLIENTS, 0, True),
        (MIN_YOUNG_PASSES - 1, 0, MAX_DELAY_S, False),  # nothing has happened
        (10_000, FEW_CLIENTS + 1, MAX_DELAY_S - 1, False),  # a rush of clients
        (MIN_YOUNG_PASSES, FEW_CLIENTS + 1, MAX_DELAY_S, True),
    ],
)
def test_when_it_is_due(num_young_passes: int, num_clients: int, since_s: float, due: bool) -> None:
    assert is_due(num_young_passes, num_clients, since_s) == due


def test_a_server_collects_only_when_told_to() -> None:
    before = gc.get_threshold()

    async def main(_: object) -> tuple[int, int]:
        return gc.get_threshold()[2], gc.get_freeze_count()

    threshold, num_frozen = run_in_turns(main)
    assert threshold > 1_000_000 and num_frozen > 1000
    assert gc.get_threshold() == before and gc.get_freeze_count() == 0


class Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


async def test_what_is_lost_is_found_when_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.garbage.PERIOD_S", 0)
    monkeypatch.setattr("server.garbage.MIN_YOUNG_PASSES", 0)
    num_clients = FEW_CLIENTS + 1
    asked = 0

    def count() -> int:
        nonlocal asked
        asked += 1
        return num_clients

    def num_knots() -> int:
        return sum(isinstance(each, Knot) for each in gc.get_objects())

    with no_long_passes():
        knot = Knot()
        gc.collect()  # it has become old
        del knot
        collecting = asyncio.create_task(collect_when_quiet(count))
        await until(lambda: asked >= 3)
        assert num_knots() == 1
        num_clients = 0
        await until(lambda: asked >= 6)
        assert num_knots() == 0
        collecting.cancel()
