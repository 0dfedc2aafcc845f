"""How much of multi-turn chats the radix cache serves: `python -m bench.prefix_cache --url URL`.

Runs chats side by side against a running server. Each turn sends the whole history and a new
question; the table shows, per turn, how many prompt tokens there were, how many came from the
cache, as `usage.prompt_tokens_details.cached_tokens` reports them, and how long an answer took.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from bench.results import spread, write_result

# Common words that most vocabularies hold as one token with their leading space.
WORDS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work number night "
    "point home water room mother area money story fact month lot right study book eye job word"
).split()


@dataclass(frozen=True)
class ChatShape:
    """Lengths are in tokens, roughly: prompts are made of words of about one token each."""

    turns: int
    system_len: int
    question_len: int
    answer_len: int


@dataclass(frozen=True)
class TurnUsage:
    prompt_tokens: int
    cached_tokens: int
    latency_s: float
    """From the request to the whole answer."""


def make_text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(num_words))


async def run_chat(
    session: aiohttp.ClientSession, url: str, shape: ChatShape, seed: int
) -> list[TurnUsage]:
    """One chat of `shape.turns` turns; the system prompt is the same for every seed."""
    system = make_text(random.Random("system"), shape.system_len)
    rng = random.Random(seed)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}]
    usages: list[TurnUsage] = []
    for _ in range(shape.turns):
        messages.append({"role": "user", "content": make_text(rng, shape.question_len) + "?"})
        body = {
            "model": "default",
            "messages": messages,
            "max_tokens": shape.answer_len,
            "ignore_eos": True,
            "temperature": 0,
        }
        begin_s = time.perf_counter()
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {answer}")
        latency_s = time.perf_counter() - begin_s
        messages.append(answer["choices"][0]["message"])
        usage = answer["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        usages.append(TurnUsage(usage["prompt_tokens"], cached, latency_s))
    return usages


async def run_chats(
    url: str, num_chats: int, shape: ChatShape, first_seed: int = 0
) -> list[list[TurnUsage]]:
    """All chats at once; per chat, the usage of each turn."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        seeds = range(first_seed, first_seed + num_chats)
        return await asyncio.gather(*(run_chat(session, url, shape, seed) for seed in seeds))


def cached_share(turns: list[TurnUsage]) -> float:
    """Of all prompt tokens, those that came from the cache."""
    return sum(turn.cached_tokens for turn in turns) / sum(turn.prompt_tokens for turn in turns)


def show_row(name: str, turns: list[TurnUsage]) -> None:
    prompt, cached = sum(t.prompt_tokens for t in turns), sum(t.cached_tokens for t in turns)
    slowest_s = max(turn.latency_s for turn in turns)
    print(f"{name:>4}  {prompt:13}  {cached:6}  {cached_share(turns):5.1%}  {slowest_s:5.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--chats", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--system-len", type=int, default=200)
    parser.add_argument("--question-len", type=int, default=15)
    parser.add_argument("--answer-len", type=int, default=48)
    parser.add_argument("--output")
    args = parser.parse_args()
    shape = ChatShape(args.turns, args.system_len, args.question_len, args.answer_len)
    chats = asyncio.run(run_chats(args.url, args.chats, shape))
    print("turn  prompt tokens  cached  share  slowest")
    for turn in range(shape.turns):
        show_row(f"{turn + 1}", [chat[turn] for chat in chats])
    turns = [turn for chat in chats for turn in chat]
    show_row("all", turns)
    summary = {
        "cached_share": cached_share(turns),
        "latency_s": spread([t.latency_s for t in turns]),
    }
    write_result(args.output, "prefix_cache", vars(args), summary, [asdict(t) for t in turns])


if __name__ == "__main__":
    main()
