"""A key with few requests next to one that floods the server, simulated: `python -m
bench.key_isolation`.

The heavy key asks for a thousand answers at once. The light key asks for one after another, all the
time that takes. Once with all requests in one queue, once with the fair queue, once with a quota
besides.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.results import write_result
from bench.simulation import VOCAB_SIZE, SimulatedReplica, StepCost, run_virtually

MODES: dict[str, tuple[bool, float | None]] = {
    "one queue": (False, None),
    "fair queue": (True, None),
    "and quota 0.5": (True, 0.5),
}
"""Whether keys take turns, and their quota."""
H100 = StepCost(fixed_s=0.006, per_token_s=0.00005)
"""Between a batch of decode rows and a chunk of a prompt, in round numbers."""


@dataclass(frozen=True)
class Flood:
    """What the keys ask for, and of what."""

    num_heavy: int = 1000
    prompt_len: int = 512
    answer_len: int = 256
    light_prompt_len: int = 128
    light_answer_len: int = 32
    pause_s: float = 0.5
    """Of the light key between two requests."""
    pool_tokens: int = 40_000
    max_rows: int = 64
    policy: str = "fcfs"
    seed: int = 0


@dataclass(frozen=True)
class Isolation:
    light_worst_s: float
    """Longest wait of the light key for a first token."""
    light_median_s: float
    num_light: int
    """Answers that the light key got while the heavy key was served."""
    heavy_worst_s: float
    seconds: float
    """Until all was answered."""
    throughput: float
    """Generated tokens per second, of both."""
    num_retracted: int


def isolation(flood: Flood, *, fair: bool, quota: float | None) -> Isolation:
    """Depends on its arguments alone."""

    async def main() -> Isolation:
        rng = random.Random(flood.seed)
        replica = SimulatedReplica(
            pool_tokens=flood.pool_tokens,
            max_rows=flood.max_rows,
            max_tokens=2048,
            policy=flood.policy,
            fair=fair,
            tenant_quota=quota,
            cost=H100,
        )

        async def ask(tenant: str, prompt_len: int, answer_len: int) -> float:
            prompt = [rng.randrange(VOCAB_SIZE) for _ in range(prompt_len)]
            return (await replica.answer(prompt, answer_len, tenant=tenant)).wait_s

        async with replica:
            flooding = asyncio.gather(
                *(ask("heavy", flood.prompt_len, flood.answer_len) for _ in range(flood.num_heavy))
            )
            await asyncio.sleep(flood.pause_s)
            waits = list[float]()
            while not flooding.done():
                waits.append(await ask("light", flood.light_prompt_len, flood.light_answer_len))
                await asyncio.sleep(flood.pause_s)
            heavy_waits = await flooding
            seconds = asyncio.get_running_loop().time()
            stats = replica.stats()
        return Isolation(
            light_worst_s=max(waits),
            light_median_s=sorted(waits)[len(waits) // 2],
            num_light=len(waits),
            heavy_worst_s=max(heavy_waits),
            seconds=seconds,
            throughput=stats.generated_tokens / seconds,
            num_retracted=stats.requests_retracted,
        )

    return run_virtually(main())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heavy", type=int, default=1000, help="requests of the heavy key")
    parser.add_argument("--policy", default="fcfs")
    parser.add_argument("--output")
    args = parser.parse_args(argv)
    flood = Flood(num_heavy=args.heavy, policy=args.policy)
    print("                light waits, worst median  answers | all done in  tokens/s  retracted")
    summary = dict[str, dict[str, float]]()
    for name, (fair, quota) in MODES.items():
        got = isolation(flood, fair=fair, quota=quota)
        summary[name] = asdict(got)
        print(
            f"{name:14}  {got.light_worst_s:16.2f} s {got.light_median_s:5.2f} s  {got.num_light:7}"
            f" | {got.seconds:9.1f} s  {got.throughput:8.0f}  {got.num_retracted:9}",
            flush=True,
        )
    write_result(args.output, "key_isolation", vars(args), summary)


if __name__ == "__main__":
    main()
