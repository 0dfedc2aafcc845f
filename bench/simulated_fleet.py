"""Simulated replicas behind a real load balancing policy, under a virtual clock."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from bench.simulation import VOCAB_SIZE, SimulatedAnswer, SimulatedReplica, StepCost, run_virtually
from jaxsgl.actors.messages import PrefixChanges, Speed
from jaxsgl.cache.page_hash import page_hashes, root_hash, split_hashes
from jaxsgl.interface import EngineStats
from jaxsgl.replicas.routing.load import Guard, Job, ReplicaLoad
from jaxsgl.replicas.routing.policies import Policy, make_policy

PAGE_SIZE = 16


@dataclass(frozen=True)
class Machine:
    """What a replica can do."""

    pool_tokens: int
    max_rows: int = 16
    max_tokens: int = 512
    cost: StepCost = field(default_factory=StepCost)

    @property
    def speed(self) -> Speed:
        """What such a replica would report of itself."""
        full_step_s = self.cost.fixed_s + self.cost.per_token_s * self.max_tokens
        decode_s = self.cost.fixed_s + self.cost.per_token_s * self.max_rows
        return Speed(full_step_s / self.max_tokens, decode_s)


class SimulatedFleet:
    """An async context manager. `await fleet.answer(prompt, max_tokens)` goes where the policy
    says."""

    def __init__(self, machines: Sequence[Machine], policy: Policy) -> None:
        self._policy = policy
        self._replicas = [
            SimulatedReplica(
                pool_tokens=machine.pool_tokens,
                page_size=PAGE_SIZE,
                max_rows=machine.max_rows,
                max_tokens=machine.max_tokens,
                cost=machine.cost,
            )
            for machine in machines
        ]
        self.loads = [
            ReplicaLoad(index, stats=EngineStats(slots_total=m.max_rows), speed=m.speed)
            for index, m in enumerate(machines)
        ]
        self.num_requests = [0] * len(machines)
        """Sent to each replica."""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> SimulatedFleet:
        for replica, load in zip(self._replicas, self.loads, strict=True):
            await self._stack.enter_async_context(replica)
            replica.tell_prefixes(_teller(load))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def answer(self, prompt: list[int], max_tokens: int) -> SimulatedAnswer:
        now_s = asyncio.get_running_loop().time
        tokens = array("i", prompt).tobytes()
        names = tuple(page_hashes(root_hash(""), tokens, 4 * PAGE_SIZE))
        job = Job(len(prompt), PAGE_SIZE, names)
        for replica, load in zip(self._replicas, self.loads, strict=True):
            load.stats = replica.stats()
        load = self._policy.choose(job, self.loads, now_s())
        guard = Guard(load, job)
        self.num_requests[load.replica_id] += 1
        begin_s, first_s = now_s(), [0.0]

        def on_first() -> None:
            first_s[0] = now_s()
            guard.prefilled(first_s[0])
            expected_s = guard.uncached_len * load.prefill_token_s
            load.latency.first_token(first_s[0] - begin_s, expected_s, first_s[0])

        answer = await self._replicas[load.replica_id].answer(prompt, max_tokens, on_first)
        guard.release()
        answer_s = now_s() - first_s[0]
        load.latency.later_tokens(answer_s, max(1, max_tokens - 1), now_s())
        load.latency.answered(answer_s)
        return answer


def _teller(load: ReplicaLoad):
    def tell(changes: PrefixChanges) -> None:
        added, dropped = split_hashes(changes.added), split_hashes(changes.dropped)
        load.sketch.change(added, dropped, changes.cleared)

    return tell


@dataclass(frozen=True)
class Workload:
    """Requests in random order, at random times: groups that share a prefix."""

    num_groups: int = 64
    group_size: int = 16
    shared_len: int = 2048
    own_len: int = 128
    answer_len: int = 32
    rate: float = 12.0
    """Requests per second."""
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    hit_rate: float
    """Cached prompt tokens / prompt tokens."""
    imbalance: float
    """Requests at the busiest replica / at the least busy one."""
    throughput: float
    """Generated tokens per second."""
    ttft_p50_s: float
    ttft_p99_s: float


def simulate(policy_name: str, machines: Sequence[Machine], workload: Workload) -> Outcome:
    """Depends on its arguments alone."""

    async def main() -> Outcome:
        rng, w = random.Random(workload.seed), workload
        prefixes = [_tokens(rng, w.shared_len) for _ in range(w.num_groups)]
        order = [group for group in range(w.num_groups) for _ in range(w.group_size)]
        rng.shuffle(order)
        async with SimulatedFleet(machines, make_policy(policy_name, w.seed)) as fleet:
            asked: list[asyncio.Task[SimulatedAnswer]] = []
            for group in order:
                prompt = prefixes[group] + _tokens(rng, w.own_len)
                asked.append(asyncio.create_task(fleet.answer(prompt, w.answer_len)))
                await asyncio.sleep(rng.expovariate(w.rate))
            answers = await asyncio.gather(*asked)
            end_s = asyncio.get_running_loop().time()
        waits = sorted(answer.wait_s for answer in answers)
        return Outcome(
            hit_rate=sum(a.cached_tokens for a in answers)
            / (len(answers) * (w.shared_len + w.own_len)),
            imbalance=max(fleet.num_requests) / max(1, min(fleet.num_requests)),
            throughput=len(answers) * w.answer_len / end_s,
            ttft_p50_s=waits[len(waits) // 2],
            ttft_p99_s=waits[int(len(waits) * 0.99)],
        )

    return run_virtually(main())


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCAB_SIZE) for _ in range(count)]
