"""The longest wait of any request under each schedule policy, simulated: `python -m
bench.fairness`.

A stream of requests of which 95 % find 96 % of their prompt in the cache and 5 % find nothing, at a
rate that the replica can just carry. A policy that prefers cached prompts must not let the others
starve.
"""

from __future__ import annotations

import argparse
import asyncio
import random

from bench.results import write_result
from bench.simulation import VOCAB_SIZE, SimulatedReplica, run_virtually

PROMPT_LEN = 1600
SHARED_LEN = 1536  # 96 %
ANSWER_LEN = 64


def longest_wait_s(policy: str, rate: float, num_requests: int = 2000, seed: int = 0) -> float:
    """Seconds from arrival to first token of the request that waited longest."""

    async def main() -> float:
        rng = random.Random(seed)
        shared = [rng.randrange(VOCAB_SIZE) for _ in range(SHARED_LEN)]
        async with SimulatedReplica(pool_tokens=80_000, policy=policy) as replica:
            asked: list[asyncio.Task[float]] = []

            async def ask(prompt: list[int]) -> float:
                return (await replica.answer(prompt, ANSWER_LEN)).wait_s

            for _ in range(num_requests):
                await asyncio.sleep(rng.expovariate(rate))
                hot = rng.random() < 0.95
                prefix = shared if hot else []
                rest = [rng.randrange(VOCAB_SIZE) for _ in range(PROMPT_LEN - len(prefix))]
                asked.append(asyncio.create_task(ask(prefix + rest)))
            return max(await asyncio.gather(*asked))

    return run_virtually(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[10, 12, 13, 14, 15, 16])
    parser.add_argument("--output")
    args = parser.parse_args()
    print("requests/s   fcfs    lpm  lpm / fcfs   (longest wait in seconds)")
    summary: dict[str, dict[str, float]] = {}
    for rate in args.rates:
        fcfs, lpm = longest_wait_s("fcfs", rate), longest_wait_s("lpm", rate)
        summary[f"{rate:g} requests/s"] = {"fcfs_s": fcfs, "lpm_s": lpm, "ratio": lpm / fcfs}
        print(f"{rate:10.1f}  {fcfs:5.2f}  {lpm:5.2f}  {lpm / fcfs:10.2f}", flush=True)
    write_result(args.output, "fairness", vars(args), summary)


if __name__ == "__main__":
    main()
