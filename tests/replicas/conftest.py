"""A front with fake replicas behind it, in this event loop or in processes."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from jaxsgl.actors.messages import Progress
from jaxsgl.actors.text_actor import TextActor
from jaxsgl.config import EngineConfig
from jaxsgl.interface import Delta, GenerateRequest, SamplingParams, TextPrompt
from jaxsgl.replicas import proxy as proxy_module
from jaxsgl.replicas.launch import LocalLaunch, ProcessLaunch
from jaxsgl.replicas.pool import ReplicaPool
from jaxsgl.replicas.proxy import ReplicaProxy
from jaxsgl.replicas.pulse import HealthLimits
from jaxsgl.replicas.restarts import RestartPolicy
from jaxsgl.replicas.routing.policies import make_policy
from jaxsgl.replicas.seat import ReplicaSpec, SeatRules
from tests.actors.fake_tokenizer import ByteTokenizer
from tests.actors.waiting import until
from tests.replicas.fake_replica import FakeReplica

ROOT = str(Path(__file__).parents[2])
CHILD_ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")])),
}
FAKE_CHILD = (sys.executable, "-m", "tests.replicas.fake_child")
QUICK_RESTARTS = RestartPolicy(max_restarts=3, first_delay_s=0.01)


def ask(request_id: str, text: str, max_tokens: int | None = 4, **sampling: Any) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt=TextPrompt(text),
        sampling=SamplingParams(max_tokens=max_tokens, **sampling),
    )


def child_processes() -> set[psutil.Process]:
    """Of this process, and theirs."""
    return set(psutil.Process().children(recursive=True))


@dataclass
class Limits:
    """`HealthLimits` of one seat, which a test changes while its replica lives: a replica that only
    had to wait for its turn on this machine must not be taken for a dead one."""

    busy_s: float = math.inf
    probe_period_s: float = math.inf


@dataclass
class Front:
    """A pool, and what a test wants to see of it."""

    pool: ReplicaPool
    text: TextActor
    replicas: list[FakeReplica] = field(default_factory=list)
    """Those in this event loop, oldest first."""
    progress: list[Progress] = field(default_factory=list)

    async def answer(self, request: GenerateRequest) -> str:
        return "".join([delta.text async for delta in self.pool.generate(request)])

    async def deltas(self, request: GenerateRequest) -> list[Delta]:
        return [delta async for delta in self.pool.generate(request)]

    @property
    def proxy(self) -> ReplicaProxy:
        """The latest of the first replica."""
        proxy = self.pool._seats.of(0).proxy
        assert proxy is not None
        return proxy

    def num_open(self) -> int:
        return sum(seat.num_open for seat in self.pool._seats)

    async def check_idle(self) -> None:
        """Everything of every request is given back, and the next one is answered."""
        await until(lambda: not self.num_open())
        self.check_books()
        if self.replicas:
            assert not self.replicas[-1].running
        assert await self.answer(ask("idle", "abc", 5)) == "abcab"
        await until(lambda: not self.num_open())

    def check_books(self) -> None:
        """The front holds nothing of any request."""
        pool, dispatcher = self.pool, self.pool._requests._dispatcher
        assert pool._requests._entrance.num_inside == 0
        assert (
            not pool._requests._journeys and not dispatcher._places and dispatcher._reserved is None
        )
        for seat in pool._seats:
            load = seat.load
            assert (load.num_in_flight, load.backlog_tokens, load.reserved_pages) == (0, 0, 0)
            assert not load.sketch._coming


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica's pulse is felt ten times a second; limits in seconds then are beats."""
    monkeypatch.setattr(proxy_module, "CHECK_PERIOD_S", 0.1)


type Open = Callable[..., Awaitable[Front]]


@pytest.fixture
async def open_front(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Opens fronts; ends them after the test and sees that nothing of them is left.

    `open_front(model_path, in_process=..., start=..., **config)`
    """
    fronts: list[Front] = []
    processes, num_fds = child_processes(), psutil.Process().num_fds()
    folder = tempfile.mkdtemp(prefix="sockets-")  # not pytest's: those are too long for a socket
    monkeypatch.setattr(tempfile, "tempdir", folder)

    async def open_one(
        model_path: str | None = None,
        *,
        in_process: bool = False,
        start: bool = True,
        policy: RestartPolicy = QUICK_RESTARTS,
        dp: int = 1,
        balancing: str = "cache-aware",
        follows_latency: bool = False,
        max_unhealthy: int = 100,
        limits: Sequence[Limits] = (),
        **config: Any,
    ) -> Front:
        engine_config = EngineConfig(model_path=model_path, **config)
        text = TextActor(ByteTokenizer())
        await text.start()
        replicas: list[FakeReplica] = []
        progress: list[Progress] = []

        async def build(config: EngineConfig, send: Any) -> FakeReplica:
            replicas.append(await FakeReplica.start(config, send))
            return replicas[-1]

        if in_process:
            launcher = functools.partial(
                ProcessLaunch,
                config=engine_config,
                command=FAKE_CHILD,
                environment=CHILD_ENVIRONMENT,
            )
        else:
            launcher = functools.partial(LocalLaunch, config=engine_config, factory=build)
        pool = ReplicaPool(
            engine_config,
            text,
            [ReplicaSpec(launcher, (str(index),)) for index in range(dp)],
            policy=make_policy(balancing, seed=0),
            follows_latency=follows_latency,
            rules=SeatRules(policy, HealthLimits()),
            max_unhealthy=max_unhealthy,
            on_progress=progress.append,
        )
        for seat, own in zip(pool._seats, limits, strict=False):
            seat._rules = SeatRules(policy, own)  # pyright: ignore[reportArgumentType]
        fronts.append(Front(pool, text, replicas, progress))
        if start:
            await pool.start()
        return fronts[-1]

    yield open_one
    for front in fronts:
        await front.pool.stop()
        await front.text.stop(5)
    # What was cancelled or closed is gone a turn of the loop later.
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert not child_processes() - processes
    await until(lambda: psutil.Process().num_fds() <= num_fds)
    os.rmdir(folder)  # raises if a front has left something
