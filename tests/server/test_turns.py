"""Who is listened to when many speak at once."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from server.turns import MAX_NEWEST, MAX_OLDEST, Turns, run_in_turns

type Pairs = list[tuple[socket.socket, socket.socket]]


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(100)]
        for pair in pairs:
            for sock in pair:
                stack.enter_context(sock)
        yield pairs


def listening(pairs: Pairs, num_clients: int) -> Turns:
    turns = Turns()
    for near, _ in pairs:
        turns.register(near, selectors.EVENT_READ)
    turns.clients |= {near.fileno() for near, _ in pairs[:num_clients]}
    return turns


def heard(turns: Turns) -> set[int]:
    return {key.fd for key, _ in turns.select(0)}


def test_a_turn_takes_some_clients_and_everybody_else(pairs: Pairs) -> None:
    with listening(pairs, 90) as turns:
        for _, far in pairs:
            far.send(b"x")
        first = heard(turns)
        assert {near.fileno() for near, _ in pairs[90:]} <= first
        assert len(first) == 10 + MAX_NEWEST + MAX_OLDEST


def test_the_newest_is_heard_at_once_and_the_oldest_too(pairs: Pairs) -> None:
    with listening(pairs, 100) as turns:
        for _, far in pairs[:99]:
            far.send(b"x")
        heard(turns)
        pairs[99][1].send(b"x")
        next_heard = heard(turns)
        assert pairs[99][0].fileno() in next_heard
        assert len(next_heard) == MAX_NEWEST + MAX_OLDEST


def test_everybody_is_heard_in_the_end(pairs: Pairs) -> None:
    by_number = {near.fileno(): near for near, _ in pairs}
    with listening(pairs, 100) as turns:
        for _, far in pairs:
            far.send(b"x")
        num_turns = 0
        while now := heard(turns):
            num_turns += 1
            for number in now:
                by_number.pop(number).recv(1)
        assert not by_number and num_turns == -(-100 // (MAX_NEWEST + MAX_OLDEST))


def test_few_are_all_heard(pairs: Pairs) -> None:
    with listening(pairs, 100) as turns:
        for _, far in pairs[: MAX_NEWEST + MAX_OLDEST]:
            far.send(b"x")
        assert len(heard(turns)) == MAX_NEWEST + MAX_OLDEST


def test_a_loop_runs_on_it() -> None:
    async def main(turns: Turns) -> int:
        return len(turns.clients)

    assert run_in_turns(main) == 0
