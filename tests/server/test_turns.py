"""Who is listened to when many speak at once."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from server.turns import MAX_NEWEST, MAX_OLDEST, MAX_URGENT, Turns, run_in_turns

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"

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


@pytest.mark.parametrize(
    "check",
    [HEALTH, b"HEAD /llm/health HTTP/1.1\r\n", b"GET /ready?verbose HTTP/1.1\r\n", HEALTH * 9],
)
def test_a_health_check_does_not_wait(pairs: Pairs, check: bytes) -> None:
    with listening(pairs, 100) as turns:
        for number, (_, far) in enumerate(pairs):
            far.send(check if number == 50 else b"POST /health HTTP/1.1\r\n")
        asked = pairs[50][0]
        assert asked.fileno() in heard(turns)
        assert asked.recv(1000) == check  # nothing of it was lost
        # The same connection asks again, while the others still wait.
        pairs[50][1].send(check)
        assert asked.fileno() in heard(turns)


def test_many_health_checks_take_turns_too(pairs: Pairs) -> None:
    with listening(pairs, 100) as turns:
        for _, far in pairs:
            far.send(HEALTH)
        assert len(heard(turns)) == MAX_URGENT + MAX_NEWEST + MAX_OLDEST


def test_who_waits_costs_nothing(pairs: Pairs) -> None:
    with listening(pairs, 100) as turns:
        for _, far in pairs:
            far.send(b"x")
        heard(turns)
        assert len(turns._listening.get_map()) == MAX_NEWEST + MAX_OLDEST
        assert len(turns.get_map()) == 100
        assert all(turns.get_key(near).fd == near.fileno() for near, _ in pairs)


def test_who_waits_can_be_changed_and_removed(pairs: Pairs) -> None:
    with listening(pairs, 100) as turns:
        for _, far in pairs:
            far.send(b"x")
        heard(turns)
        gone, changed = pairs[40][0], pairs[41][0]
        assert turns.unregister(gone).fd == gone.fileno()
        with pytest.raises(KeyError):
            turns.get_key(gone)
        with pytest.raises(KeyError):
            turns.register(changed, selectors.EVENT_READ)
        turns.modify(changed, selectors.EVENT_READ | selectors.EVENT_WRITE, "data")
        (entry,) = [entry for entry in turns.select(None) if entry[0].fileobj is changed]
        assert entry[0].data == "data"
        assert entry[1] == selectors.EVENT_READ | selectors.EVENT_WRITE
        turns.unregister(changed)
        left = {near.fileno() for near, _ in pairs} - {gone.fileno(), changed.fileno()}
        assert set(turns.get_map()) == {near for near, _ in pairs if near.fileno() in left}


def test_few_are_all_heard(pairs: Pairs) -> None:
    with listening(pairs, 100) as turns:
        for _, far in pairs[: MAX_NEWEST + MAX_OLDEST]:
            far.send(b"x")
        assert len(heard(turns)) == MAX_NEWEST + MAX_OLDEST


def test_a_loop_runs_on_it() -> None:
    async def main(turns: Turns) -> int:
        return len(turns.clients)

    assert run_in_turns(main) == 0
