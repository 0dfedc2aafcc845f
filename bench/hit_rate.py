"""Cache hit rates of the schedule policies, simulated: `python -m bench.hit_rate`.

Each workload runs against a page pool of a share of its distinct tokens. The ideal is the same
requests one after another with a pool that never has to evict.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bench.results import write_result
from bench.simulation import VOCAB_SIZE, SimulatedReplica, run_virtually
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.scheduling.policies import POLICY_NAMES

PAGE_SIZE = 16


@dataclass
class Recorder:
    """Asks a replica and keeps what was asked and answered, in the order of asking."""

    replica: SimulatedReplica
    sequences: list[tuple[list[int], list[int]]] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0

    async def ask(self, prompt: list[int], max_tokens: int) -> list[int]:
        slot = len(self.sequences)
        prompt = list(prompt)
        self.sequences.append((prompt, []))
        answer = await self.replica.answer(prompt, max_tokens)
        self.sequences[slot] = (prompt, answer.token_ids)
        self.prompt_tokens += len(prompt)
        self.cached_tokens += answer.cached_tokens
        return answer.token_ids


type Workload = Callable[[Recorder, random.Random], Awaitable[None]]


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCAB_SIZE) for _ in range(count)]


async def multi_turn_chat(
    recorder: Recorder, rng: random.Random, think_time_s: float = 0.0
) -> None:
    """64 chats of 5 turns with one system prompt; the next question follows the answer."""
    system = tokens(rng, 200)

    async def chat(turns: list[list[int]]) -> None:
        history = list(system)
        for question in turns:
            history += question
            history += await recorder.ask(history, 60)
            await asyncio.sleep(think_time_s)

    chats = [[tokens(rng, rng.randint(20, 60)) for _ in range(5)] for _ in range(64)]
    await asyncio.gather(*(chat(turns) for turns in chats))


async def shared_prefixes(recorder: Recorder, rng: random.Random) -> None:
    """512 requests in random order, each 128 tokens after one of 8 prefixes of 1,024."""
    prefixes = [tokens(rng, 1024) for _ in range(8)]
    prompts = [prefixes[i % 8] + tokens(rng, 128) for i in range(512)]
    rng.shuffle(prompts)
    await asyncio.gather(*(recorder.ask(prompt, 32) for prompt in prompts))


async def tree_of_forks(recorder: Recorder, rng: random.Random) -> None:
    """24 problems of 300 tokens; each forks into 3 thoughts, and each of those into 3 again."""

    async def think(prompt: list[int], depth: int) -> None:
        thought = prompt + tokens(rng, 20)
        thought += await recorder.ask(thought, 80)
        if depth < 2:
            await asyncio.gather(*(think(thought, depth + 1) for _ in range(3)))

    await asyncio.gather(*(think(tokens(rng, 300), 0) for _ in range(24)))


async def few_shot(recorder: Recorder, rng: random.Random) -> None:
    """16 subjects with 5 shots of 120 tokens, 40 questions each with 4 options to score."""
    subjects = [tokens(rng, 600) for _ in range(16)]
    questions = [subject + tokens(rng, 80) for subject in subjects for _ in range(40)]
    rng.shuffle(questions)
    prompts = [question + tokens(rng, 4) for question in questions for _ in range(4)]
    await asyncio.gather(*(recorder.ask(prompt, 1) for prompt in prompts))


WORKLOADS: dict[str, Workload] = {
    "multi-turn chat": multi_turn_chat,
    "shared prefixes": shared_prefixes,
    "tree of forks": tree_of_forks,
    "few-shot": few_shot,
}


def record(workload: Workload, policy: str, pool_tokens: int, seed: int = 0) -> Recorder:
    """Run a workload to its end."""

    async def main() -> Recorder:
        async with SimulatedReplica(
            pool_tokens=pool_tokens, page_size=PAGE_SIZE, policy=policy
        ) as replica:
            recorder = Recorder(replica)
            await workload(recorder, random.Random(seed))
            return recorder

    return run_virtually(main())


def replay(sequences: list[tuple[list[int], list[int]]]) -> tuple[int, int]:
    """Cached prompt tokens and pages used, one request after another, nothing ever evicted."""
    num_pages = 2 + sum(-(-(len(p) + len(a)) // PAGE_SIZE) for p, a in sequences)
    cache = KVCacheManager(num_pages, PAGE_SIZE)
    cached = 0
    for prompt, answer in sequences:
        lease = cache.open("", prompt)
        cached += lease.num_reused
        known = prompt + answer[:-1]
        cache.grow(lease, len(known))
        cache.close(lease, known)
    return cached, cache.num_cached


def share_of_ideal(workload: Workload, policy: str, pool_share: float) -> tuple[float, float]:
    """The hit rate, and what share of the ideal hit rate that is."""
    unbounded = record(workload, "fcfs", 2_000_000)
    _, num_pages = replay(unbounded.sequences)
    recorder = record(workload, policy, int(num_pages * pool_share) * PAGE_SIZE)
    ideal, _ = replay(recorder.sequences)
    return recorder.cached_tokens / recorder.prompt_tokens, recorder.cached_tokens / ideal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool-shares", type=float, nargs="+", default=[0.4, 0.2])
    parser.add_argument("--policies", nargs="+", default=list(POLICY_NAMES))
    parser.add_argument("--output")
    args = parser.parse_args()
    print(f"{'workload':16}  pool  " + "  ".join(f"{p:>14}" for p in args.policies))
    summary: dict[str, dict[str, tuple[float, float]]] = {}
    for name, workload in WORKLOADS.items():
        for pool_share in args.pool_shares:
            cells = {p: share_of_ideal(workload, p, pool_share) for p in args.policies}
            summary[f"{name}, pool {pool_share:.0%}"] = cells
            shown = "  ".join(f"{rate:6.1%} {ideal:7.1%}" for rate, ideal in cells.values())
            print(f"{name:16}  {pool_share:4.0%}  {shown}", flush=True)
    print("per policy: hit rate, share of the ideal")
    write_result(args.output, "hit_rate", vars(args), summary)


if __name__ == "__main__":
    main()
