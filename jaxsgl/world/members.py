"""The leader's line to its followers: who is in, what they are told, and when one is gone."""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import logging
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any

from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.replicas.tcp import family_of, join_address
from jaxsgl.world.errors import WorldLost
from jaxsgl.world.orders import (
    Broken,
    Carried,
    Challenge,
    Join,
    Prepared,
    Turned,
    Welcome,
    Word,
    word_decoder,
)
from jaxsgl.world.wire import Wire, WireClosed, proof_of, read_key, world_address

log = logging.getLogger(__name__)

_HANDSHAKE_TIMEOUT_S = 5.0
_REMIND_S = 30.0
"""While processes are missing, so often the log says which."""
OWN_SETTINGS = frozenset(
    {
        "model_path",
        "served_model_name",
        "tokenizer_path",
        "skip_tokenizer_init",
        "chat_template",
        "compilation_cache_dir",
        "grammar_cache_dir",
        "step_trace",
        "inject_fault",
        "node_rank",
        "dist_init_addr",
        "world_key_file",
    }
)
"""Paths of a machine, and what only the leader looks at. Everything else must be the same."""


def settings_apart(leader: EngineConfig, follower: EngineConfig) -> str | None:
    """In one line, the first setting that is not the same on both; None if there is none."""
    for field in dataclasses.fields(EngineConfig):
        here, there = getattr(leader, field.name), getattr(follower, field.name)
        if field.name not in OWN_SETTINGS and here != there:
            flag = field.name.replace("_", "-")
            return f"--{flag} is {there!r} here and {here!r} at the process of rank 0"
    return None


class Members:
    """Opened by `gather`. `on_lost` is called once, from some thread, when the world cannot go on;
    it must not block."""

    def __init__(self, config: EngineConfig, on_lost: Callable[[WorldLost], None]) -> None:
        self._config = config
        self._on_lost = on_lost
        self._wires: dict[int, Wire[Word]] = {}
        self._changed = threading.Condition()
        self._answers: dict[tuple[int, int], Any] = {}
        """Prepared and Carried, by rank and question."""
        self._loss: WorldLost | None = None
        self._stopping = False

    def gather(self) -> str:
        """Wait until all are in, and tell them where jax meets, which is returned. Raises
        ConfigError for an address that cannot be listened at, and WorldLost."""
        assert self._config.dist_init_addr is not None and self._config.world_key_file is not None
        host, port = world_address(self._config.dist_init_addr)
        key = read_key(self._config.world_key_file)
        try:
            with socket.create_server((host, port), family=family_of(host)) as server:
                server.settimeout(_REMIND_S)
                log.info("waiting at %s:%d for %d processes", host, port, len(self._missing()))
                while self._missing():
                    self._let_in(server, key)
        except OSError as error:
            raise ConfigError(f"--dist-init-addr {host}:{port}: {error}") from None
        for rank, wire in self._wires.items():
            threading.Thread(
                target=self._listen, args=(rank, wire), name=f"rank {rank}", daemon=True
            ).start()
        coordinator = _free_address(host)
        self.tell(Welcome(coordinator))
        return coordinator

    def tell(self, order: Any) -> None:
        """Send it to all, after what was sent before. Raises WorldLost."""
        if self._loss is not None:
            raise self._loss
        for rank, wire in self._wires.items():
            try:
                wire.send(order)
            except WireClosed as error:
                raise self.lose(_gone(rank, error), by_itself=False) from None

    def answers(self, ask_id: int) -> list[Prepared | Carried]:
        """Wait for everyone's answer to a question. Raises WorldLost."""
        keys = [(rank, ask_id) for rank in self._wires]
        with self._changed:
            self._changed.wait_for(
                lambda: self._loss is not None or all(key in self._answers for key in keys)
            )
            if self._loss is not None:
                raise self._loss
            return [self._answers.pop(key) for key in keys]

    @property
    def is_lost(self) -> bool:
        return self._loss is not None

    def lose(self, why: str, *, by_itself: bool) -> WorldLost:
        """Say that the world is at its end; what the first one said who noticed."""
        with self._changed:
            if self._loss is not None:
                return self._loss
            loss = self._loss = WorldLost(why, by_itself=by_itself)
            self._changed.notify_all()
        if not self._stopping:
            self._on_lost(loss)
        return loss

    def wait_for_loss(self, timeout_s: float) -> None:
        """Returns early if the world is at its end."""
        with self._changed:
            self._changed.wait_for(lambda: self._loss is not None, timeout_s)

    def stop(self, order: Any) -> None:
        """Tell the others, and have done with them. Idempotent."""
        self._stopping = True
        with contextlib.suppress(WorldLost):
            self.tell(order)
        for wire in self._wires.values():
            wire.close()

    def _missing(self) -> list[int]:
        return [rank for rank in range(1, self._config.nnodes) if rank not in self._wires]

    def _let_in(self, server: socket.socket, key: bytes) -> None:
        """One that belongs here, if one comes."""
        try:
            sock, address = server.accept()
        except TimeoutError:
            log.info("still waiting for the processes of rank %s", self._missing())
            return
        sock.settimeout(_HANDSHAKE_TIMEOUT_S)
        wire = Wire(sock, word_decoder)
        nonce = secrets.token_hex(32)
        try:
            wire.send(Challenge(nonce))
            join = wire.receive()
            if not isinstance(join, Join) or not hmac.compare_digest(
                join.proof.encode(), proof_of(key, nonce, join.rank).encode()
            ):
                raise WireClosed("does not know the key")
            if (why := self._reason_against(join)) is not None:
                wire.send(Turned(why))
                raise WireClosed(why)
        except WireClosed as error:
            log.warning("%s was not let into the world: %s", address[0], error)
            wire.close()
            return
        wire.trust()
        if (former := self._wires.get(join.rank)) is not None:
            former.close()
        self._wires[join.rank] = wire
        log.info("rank %d is here, from %s", join.rank, address[0])

    def _reason_against(self, join: Join) -> str | None:
        if not 0 < join.rank < self._config.nnodes:
            return f"--node-rank {join.rank} is none of the {self._config.nnodes} of this world"
        return settings_apart(self._config, join.config)

    def _listen(self, rank: int, wire: Wire[Word]) -> None:
        try:
            while True:
                word = wire.receive()
                match word:
                    case Prepared() | Carried():
                        with self._changed:
                            self._answers[rank, word.ask_id] = word
                            self._changed.notify_all()
                    case Broken():
                        self.lose(f"rank {rank}: {word.why}", by_itself=True)
                        return
                    case Join():
                        raise WireClosed("joined twice")
        except WireClosed as error:
            self.lose(_gone(rank, error), by_itself=False)


def _gone(rank: int, error: WireClosed) -> str:
    return f"the process of rank {rank} is gone ({error})"


def _free_address(host: str) -> str:
    """One of this machine that nobody listens at."""
    with socket.create_server((host, 0), family=family_of(host)) as server:
        port = server.getsockname()[1]
    return join_address(host, port)
