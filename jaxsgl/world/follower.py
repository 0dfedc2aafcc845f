"""A follower: does what the leader of its world says, in that order, until the end."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.interface import OperationFailed, OperationRefused
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.model_files import open_weights
from jaxsgl.replicas.replica_host import Outcome
from jaxsgl.runner.build import build_runner
from jaxsgl.runner.processes import join_processes
from jaxsgl.step import Change, MaskRows, PendingStep, Runner
from jaxsgl.world.errors import one_line
from jaxsgl.world.orders import (
    Broken,
    Carried,
    Carry,
    Challenge,
    Forget,
    Join,
    Masks,
    Order,
    Prepare,
    Prepared,
    Reset,
    Step,
    Stop,
    Turned,
    Welcome,
    end_of,
    order_decoder,
)
from jaxsgl.world.wire import Wire, WireClosed, proof_of, read_key, world_address

log = logging.getLogger(__name__)

_HANDSHAKE_TIMEOUT_S = 10.0
_RETRY_S = 0.5


def follow(config: EngineConfig) -> Outcome:
    """One life of a follower, from finding the leader to the end of the world; a process has one.

    Does not return if the leader goes before it has said so: then the process ends as ORPHANED.
    """
    try:
        checkpoint = open_weights(config)
        wire, welcome = join(config)
    except (ConfigError, CheckpointError) as error:
        log.error("%s", error)
        return Outcome.START_FAILED
    orders = Orders(wire, _exit_as_orphan)
    try:
        join_processes(welcome.coordinator, config.nnodes, config.node_rank)
        runner = build_runner(config, checkpoint, _unwatched)
        log.info("rank %d follows", config.node_rank)
        Follower(runner, orders).run()
    except (ConfigError, CheckpointError) as error:
        log.error("%s", error)
        orders.say(Broken(str(error)))
        return Outcome.START_FAILED
    except Exception as error:
        log.exception("cannot follow any more")
        orders.say(Broken(one_line(error)))
        return Outcome.FAILED
    return Outcome.ORDERED


def _exit_as_orphan() -> None:
    """Whatever this process is doing, it may do it for ever: the others are gone."""
    logging.shutdown()
    os._exit(Outcome.ORPHANED)


def _unwatched(stage: str, done: int, total: int) -> None:
    """The leader's progress is the same."""


def join(config: EngineConfig) -> tuple[Wire[Order], Welcome]:
    """Find the leader, however long it takes, and wait until all are there. Raises ConfigError."""
    assert config.dist_init_addr is not None and config.world_key_file is not None
    address = world_address(config.dist_init_addr)
    key = read_key(config.world_key_file)
    log.info("rank %d looks for the leader at %s", config.node_rank, config.dist_init_addr)
    while True:
        try:
            sock = socket.create_connection(address, _HANDSHAKE_TIMEOUT_S)
        except OSError:
            time.sleep(_RETRY_S)
            continue
        wire = Wire(sock, order_decoder)
        try:
            welcome = _introduce(wire, key, config)
        except WireClosed as error:
            log.warning("not let in: %s", error)
            wire.close()
            time.sleep(_RETRY_S)
            continue
        if isinstance(welcome, Welcome):
            return wire, welcome
        wire.close()
        raise ConfigError(welcome.why)


def _introduce(wire: Wire[Order], key: bytes, config: EngineConfig) -> Welcome | Turned:
    challenge = wire.receive()
    if not isinstance(challenge, Challenge):
        raise WireClosed("no leader is there")
    rank = config.node_rank
    wire.send(Join(rank, proof_of(key, challenge.nonce, rank), config))
    wire.trust()
    answer = wire.receive()
    if not isinstance(answer, Welcome | Turned):
        raise WireClosed("no leader is there")
    return answer


class Orders:
    """What the leader says. `next` brings what is to be done in order; what is to be prepared
    beside that goes to `on_aside`."""

    def __init__(self, wire: Wire[Order], on_gone: Callable[[], None]) -> None:
        """`on_gone` is called, in a thread, if the leader goes without a word."""
        self._wire = wire
        self._on_gone = on_gone
        self._queue: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._asides: queue.SimpleQueue[Prepare | Forget] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="leader", daemon=True).start()

    def next(self) -> Order:
        return self._queue.get()

    def next_aside(self) -> Prepare | Forget:
        return self._asides.get()

    def say(self, word: object) -> None:
        """Does nothing once the leader is gone."""
        with contextlib.suppress(WireClosed):
            self._wire.send(word)

    def _listen(self) -> None:
        try:
            while True:
                order = self._wire.receive()
                if isinstance(order, Prepare | Forget):
                    self._asides.put(order)
                else:
                    self._queue.put(order)
                if isinstance(order, Stop):
                    return
        except WireClosed as error:
            log.error("the leader is gone (%s)", error)
            self._on_gone()
            self._queue.put(Stop())


class Follower:
    def __init__(self, runner: Runner, orders: Orders) -> None:
        self._runner = runner
        self._orders = orders
        self._changes: dict[int, Change] = {}
        self._last: PendingStep | None = None

    def run(self) -> None:
        """Returns when told to stop. Raises what a step raises, perhaps only at the next one."""
        threading.Thread(target=self._prepare, name="prepare", daemon=True).start()
        while True:
            order = self._orders.next()
            match order:
                case Step():
                    self._step(order)
                case Reset():
                    self._last = None
                    self._runner.reset()
                case Carry():
                    self._carry(order.ask_id)
                case Stop():
                    return
                case _:
                    raise ValueError(f"{type(order).__name__} out of turn")

    def _step(self, order: Step) -> None:
        masks = LeadersMasks(self._orders) if order.has_masks else None
        before, self._last = self._last, self._runner.dispatch(order.plan, masks)
        if before is not None:
            before.wait()

    def _carry(self, ask_id: int) -> None:
        problem = None
        try:
            self._changes.pop(ask_id)()
        except (OperationRefused, OperationFailed) as error:
            problem = error
        self._orders.say(Carried(ask_id, end_of(problem)))

    def _prepare(self) -> None:
        while True:
            aside = self._orders.next_aside()
            if isinstance(aside, Forget):
                self._changes.pop(aside.ask_id, None)
                continue
            refused = None
            try:
                self._changes[aside.ask_id] = self._runner.prepare(aside.operation)
            except Exception as error:
                refused = str(error) or type(error).__name__
            self._orders.say(Prepared(aside.ask_id, refused))


class LeadersMasks:
    """Implements `step.StepMasks`: the next order."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def fill(self, masks: NDArray[np.uint32], is_due: Callable[[], bool]) -> MaskRows:
        told = self._orders.next()
        if not isinstance(told, Masks):
            raise ValueError(f"{type(told).__name__} where masks were due")
        masks[: len(told.words)] = told.words
        return told.rows
