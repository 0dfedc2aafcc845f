"""What a replica in a Ray cluster does, with a cluster that is none: `tests/e2e/test_ray.py` has a
real one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from jaxsgl.actors.messages import Ready, Stop
from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.replicas.launch import Ending, StartError
from jaxsgl.replicas.ray_host import ReplicaProcess
from jaxsgl.replicas.ray_launch import RayCluster, RayLaunch
from tests.actors.waiting import until
from tests.replicas.recorder import Recorder


class Ref:
    """What Ray gives for a result to come."""

    def __init__(self, result: Future[Any]) -> None:
        self._result = result

    def future(self) -> Future[Any]:
        return self._result


class Place:
    def ready(self) -> Ref:
        done: Future[None] = Future()
        done.set_result(None)
        return Ref(done)


class Actor:
    """Runs a replica process in a thread, as an actor does in a process."""

    def __init__(self) -> None:
        self.run = self
        self.result: Future[int] = Future()
        self._thread = ThreadPoolExecutor(1)

    def remote(self, address: str, token: str) -> Ref:
        host, _, port = address.rpartition(":")
        assert host == "127.0.0.1" and int(port) > 0
        running = self._thread.submit(
            ReplicaProcess("tests.replicas.fake_child").run, address, token
        )
        running.add_done_callback(self._end)
        return Ref(self.result)

    def _end(self, running: Future[int]) -> None:
        if not self.result.done():
            self.result.set_result(running.result())


class Cluster:
    own_host = "127.0.0.1"

    def __init__(self) -> None:
        self.actor = Actor()
        self.ended: list[tuple[Any, Any]] = []
        self.num_gpus: list[int] = []

    def reserve(self, num_gpus: int) -> Place:
        self.num_gpus.append(num_gpus)
        return Place()

    def start(self, place: Place, num_gpus: int) -> Actor:
        self.num_gpus.append(num_gpus)
        return self.actor

    def end(self, place: Place, actor: Actor) -> None:
        self.ended.append((place, actor))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    yield cluster
    assert len(cluster.ended) == 1


def ray_launch(cluster: Cluster, model_path: str | None = None) -> RayLaunch:
    return RayLaunch(0, EngineConfig(model_path=model_path), cluster, 2)  # pyright: ignore


async def ready_child(launch: RayLaunch, receiver: Recorder) -> tuple[Any, int]:
    """The link, and the id of the replica's process."""
    link = await launch.open(receiver)

    def readies() -> list[Ready]:
        return [message for message in receiver.messages if isinstance(message, Ready)]

    await until(readies, timeout_s=120)
    return link, int(readies()[0].notes[0].removeprefix("process "))


async def test_it_connects_from_outside_and_ends_in_order(cluster: Cluster):
    launch, receiver = ray_launch(cluster), Recorder()
    link, process_id = await ready_child(launch, receiver)
    assert cluster.num_gpus == [2, 2] and process_id != os.getpid()
    link.send(Stop())
    assert await launch.wait_for_end() == Ending(None)
    await launch.close()


@pytest.mark.parametrize(
    ("number", "ending"),
    [
        (signal.SIGKILL, Ending("was killed by SIGKILL")),
        (signal.SIGSEGV, Ending("was killed by SIGSEGV", by_itself=True)),
    ],
)
async def test_how_its_process_ends_is_told(
    cluster: Cluster, number: signal.Signals, ending: Ending
):
    launch = ray_launch(cluster)
    _, process_id = await ready_child(launch, Recorder())
    os.kill(process_id, number)
    assert await launch.wait_for_end() == ending
    await launch.close()


async def test_an_actor_that_is_gone_is_nobodys_fault(cluster: Cluster):
    launch = ray_launch(cluster)
    link, _ = await ready_child(launch, Recorder())
    cluster.actor.result.set_exception(RuntimeError("The actor died.\n\nIt was killed."))
    assert await launch.wait_for_end() == Ending(
        "is gone with its Ray actor (RuntimeError: It was killed.)"
    )
    link.close()
    await launch.close()


async def test_an_actor_that_does_not_even_start(cluster: Cluster):
    launch = ray_launch(cluster)
    cluster.actor.result.set_exception(ModuleNotFoundError("No module named 'jaxsgl'"))
    with pytest.raises(StartError, match="No module named 'jaxsgl'"):
        await launch.open(Recorder())
    await launch.close()
    await asyncio.sleep(0)


def test_without_ray(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxsgl\[ray\]'"):
        RayCluster(None)
