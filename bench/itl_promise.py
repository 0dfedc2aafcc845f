"""What `--max-itl-ms` keeps and what it costs, simulated: `python -m bench.itl_promise`.

Steps cost what they do for a model of 7 billion parameters on one H100, roughly. Two loads: a long
prompt that comes to rows which decode, and a closed loop of requests of which some are always at
their prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass

from bench.results import write_result
from bench.simulation import VOCAB_SIZE, SimulatedReplica, StepCost, run_virtually

COST = StepCost(
    fixed_s=0.008,
    per_token_s=30e-6,
    sizes=(32, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192),
    per_pair_s=1e-9,
    per_key_s=20e-9,
)
POOL_TOKENS = 600_000


@dataclass(frozen=True)
class Outcome:
    """Times between tokens, and what was done how fast."""

    p99_ms: float
    longest_ms: float
    tokens_per_s: float
    """Prompt and answers together, by the whole time."""
    long_wait_s: float
    """To the first token of the longest prompt."""


Load = Callable[[SimulatedReplica, random.Random], Coroutine[None, None, Outcome]]


def simulate(load: Load, max_itl_ms: float | None, seed: int = 0) -> Outcome:
    async def main() -> Outcome:
        async with SimulatedReplica(
            pool_tokens=POOL_TOKENS,
            max_rows=256,
            max_tokens=8192,
            cost=COST,
            max_itl_s=None if max_itl_ms is None else max_itl_ms / 1e3,
        ) as replica:
            return await load(replica, random.Random(seed))

    return run_virtually(main())


async def long_prompt(replica: SimulatedReplica, rng: random.Random) -> Outcome:
    """32,768 tokens come while 64 rows decode."""

    async def late() -> tuple[list[float], float, int]:
        await asyncio.sleep(4)
        return await _ask(replica, rng, 32_768, 16)

    rows = [_ask(replica, rng, 1024, 512) for _ in range(64)]
    return await _outcome([late(), *rows])


async def closed_loop(
    replica: SimulatedReplica, rng: random.Random, num_requests: int = 512, num_at_once: int = 256
) -> Outcome:
    """Requests of 64 to 2,047 tokens and 256 of answer."""
    places = asyncio.Semaphore(num_at_once)

    async def one() -> tuple[list[float], float, int]:
        async with places:
            return await _ask(replica, rng, rng.randint(64, 2047), 256)

    return await _outcome([one() for _ in range(num_requests)])


LOADS: dict[str, Load] = {"32k beside 64 rows": long_prompt, "256 at a time": closed_loop}


async def _ask(
    replica: SimulatedReplica, rng: random.Random, prompt_len: int, answer_len: int
) -> tuple[list[float], float, int]:
    """Gaps between tokens, wait for the first, tokens in all."""
    prompt = [rng.randrange(VOCAB_SIZE) for _ in range(prompt_len)]
    answer = await replica.answer(prompt, answer_len)
    return answer.gaps_s, answer.wait_s, prompt_len + answer_len


async def _outcome(asked: list[Coroutine[None, None, tuple[list[float], float, int]]]) -> Outcome:
    begin_s = asyncio.get_running_loop().time()
    answers = await asyncio.gather(*asked)
    elapsed_s = asyncio.get_running_loop().time() - begin_s
    gaps_ms = sorted(gap_s * 1e3 for gaps_s, _, _ in answers for gap_s in gaps_s)
    return Outcome(
        p99_ms=gaps_ms[int(len(gaps_ms) * 0.99)],
        longest_ms=gaps_ms[-1],
        tokens_per_s=sum(num_tokens for _, _, num_tokens in answers) / elapsed_s,
        long_wait_s=answers[0][1],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-itl-ms", type=float, nargs="+", default=[40, 60, 80, 120])
    parser.add_argument("--output")
    args = parser.parse_args()
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name, load in LOADS.items():
        print(f"{name}\npromise ms  p99 ms  longest ms  tokens/s  wait of the first s")
        for promise in (None, *args.max_itl_ms):
            result = simulate(load, promise)
            summary.setdefault(name, {})[str(promise)] = asdict(result)
            print(
                f"{promise or '-':>10}  {result.p99_ms:6.1f}  {result.longest_ms:10.1f}  "
                f"{result.tokens_per_s:8.0f}  {result.long_wait_s:6.2f}",
                flush=True,
            )
    write_result(args.output, "itl-promise", vars(args), summary)


if __name__ == "__main__":
    main()
