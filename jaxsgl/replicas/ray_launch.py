"""Replicas on the machines of a Ray cluster. Ray finds a place and starts a process there; all
else, tokens first of all, passes over our own link."""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from typing import Any

from jaxsgl.actors.messages import ToFront, ToReplica
from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.logs import LogSettings
from jaxsgl.replicas.door import Door
from jaxsgl.replicas.fleet import Device
from jaxsgl.replicas.frames import FromFront, Start
from jaxsgl.replicas.launch import Ending, StartError, ending_of
from jaxsgl.replicas.link import Link, Receiver
from jaxsgl.replicas.ray_host import ReplicaProcess

log = logging.getLogger(__name__)

_EXIT_GRACE_S = 5.0
_REMIND_S = 30.0


class RayCluster:
    """The cluster that this process is connected to."""

    def __init__(self, address: str | None) -> None:
        """Connect. Blocks; raises ConfigError, one line, if that cannot be done."""
        try:
            self.ray: Any = import_module("ray")
        except ImportError:
            raise ConfigError("--launcher ray needs Ray: pip install 'jaxsgl[ray]'") from None
        self._groups: Any = import_module("ray.util.placement_group")
        self._strategies: Any = import_module("ray.util.scheduling_strategies")
        try:
            self.ray.init(address or "auto", log_to_driver=False, logging_level=logging.WARNING)
        except Exception as error:  # of many kinds
            raise ConfigError(
                f"--ray-address {address or 'auto'}: {error}".split("\n")[0]
            ) from None

    @property
    def gpus(self) -> list[Device]:
        """As many as the cluster has; where each is only Ray knows."""
        return [Device(str(n)) for n in range(int(self.ray.cluster_resources().get("GPU", 0)))]

    @property
    def own_host(self) -> str:
        """The address at which other machines of the cluster reach this one."""
        return self.ray.util.get_node_ip_address()

    def reserve(self, num_gpus: int) -> Any:
        """A place on one machine with so many GPUs, or a CPU. It may have to be waited for."""
        bundle = {"CPU": 1, **({"GPU": num_gpus} if num_gpus else {})}
        return self._groups.placement_group([bundle], strategy="STRICT_PACK")

    def start(self, place: Any, num_gpus: int) -> Any:
        """An actor there, which is never started again by Ray."""
        strategy = self._strategies.PlacementGroupSchedulingStrategy(place)
        options = {"num_cpus": 1, "num_gpus": num_gpus, "max_restarts": 0, "max_task_retries": 0}
        return (
            self.ray.remote(ReplicaProcess)
            .options(scheduling_strategy=strategy, **options)
            .remote()
        )

    def end(self, place: Any, actor: Any) -> None:
        """Idempotent."""
        if actor is not None:
            self.ray.kill(actor, no_restart=True)
        self._groups.remove_placement_group(place)

    def close(self) -> None:
        self.ray.shutdown()


class RayLaunch:
    """A replica in a process on some machine of a cluster. Implements `launch.Launch`."""

    def __init__(
        self,
        epoch: int,
        config: EngineConfig,
        cluster: RayCluster,
        num_gpus: int,
        *,
        log: LogSettings | None = None,
    ) -> None:
        self._start = Start(epoch, config, log or LogSettings())
        self._cluster = cluster
        self._num_gpus = num_gpus
        self._door: Door | None = None
        self._place: Any = None
        self._actor: Any = None
        self._exited: asyncio.Future[int] | None = None

    async def open(self, receiver: Receiver[ToFront]) -> Link[ToReplica]:
        cluster = self._cluster
        door = self._door = Door(receiver, cluster.own_host)
        await door.listen()
        self._place = await asyncio.to_thread(cluster.reserve, self._num_gpus)
        ready = asyncio.wrap_future(self._place.ready().future())
        while not (await asyncio.wait({ready}, timeout=_REMIND_S))[0]:
            log.info("waiting for a place in the Ray cluster with %d GPUs", self._num_gpus)
        self._actor = await asyncio.to_thread(cluster.start, self._place, self._num_gpus)
        running = self._actor.run.remote(door.address, door.token)
        exited = self._exited = asyncio.wrap_future(running.future())
        exited.add_done_callback(_seen)
        await asyncio.wait({door.opened, exited}, return_when=asyncio.FIRST_COMPLETED)
        if not door.opened.done():
            how = self._ending(exited).how
            raise StartError(f"the replica process {how or 'ended'}")
        link: Link[FromFront] = door.opened.result()
        door.close()
        link.send(self._start)
        return link

    async def wait_for_end(self) -> Ending:
        assert self._door is not None and self._exited is not None
        link = self._door.opened.result()
        await asyncio.wait({self._exited, link.closed}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({self._exited}, timeout=_EXIT_GRACE_S)
        if self._exited.done():
            return self._ending(self._exited)
        return Ending("closed its link")

    async def close(self) -> None:
        if self._door is not None:
            self._door.close()
        if self._place is not None:
            await asyncio.to_thread(self._cluster.end, self._place, self._actor)
        if self._exited is not None:
            await asyncio.wait({self._exited}, timeout=_EXIT_GRACE_S)

    @staticmethod
    def _ending(exited: asyncio.Future[int]) -> Ending:
        if (error := exited.exception()) is None:
            return ending_of(exited.result())
        # Its actor was killed, or its machine is gone; what it computed did not do that.
        why = str(error).strip().split("\n")[-1][:300]
        return Ending(f"is gone with its Ray actor ({type(error).__name__}: {why})")


def _seen(exited: asyncio.Future[int]) -> None:
    """Nobody may ask for the exception of an actor that was ended on purpose."""
    if not exited.cancelled():
        exited.exception()
