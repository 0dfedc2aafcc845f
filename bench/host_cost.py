"""What the host's logic costs, without device or event loop: `python -m bench.host_cost`.

The cache: what one request does to a large radix tree from its arrival to its end. The scheduler: a
step of many decoding rows. Best and median of the repeats; on a machine that is busy with something
else, the best is nearer to the truth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.host_step import scheduler_times
from bench.results import show, write_result
from jaxsgl.cache.eviction import Lru
from jaxsgl.cache.radix_tree import RadixTree

PAGE_SIZE = 16
VOCAB_SIZE = 50_000
LEAVES_PER_PREFIX = 100
PREFIX_LEN = 1024
LEAF_LEN = 256


class LargeTree:
    """Prefixes of PREFIX_LEN tokens, each with LEAVES_PER_PREFIX leaves of LEAF_LEN more."""

    def __init__(self, num_leaves: int, num_spare_pages: int) -> None:
        self._rng = np.random.default_rng(0)
        num_prefixes = -(-num_leaves // LEAVES_PER_PREFIX)
        num_pages = num_prefixes * PREFIX_LEN // PAGE_SIZE + num_leaves * LEAF_LEN // PAGE_SIZE
        self._free_pages = np.arange(num_pages + num_spare_pages, dtype=np.int32)
        self._tree = RadixTree(PAGE_SIZE, Lru(len(self._free_pages)))
        self._prefixes = [self._tokens(PREFIX_LEN) for _ in range(num_prefixes)]
        for leaf in range(num_leaves):
            prefix = self._prefixes[leaf // LEAVES_PER_PREFIX]
            self._add(prefix + self._tokens(LEAF_LEN))

    def request_ms(self, num_tokens: int) -> float:
        """Match, lock, insert and unlock a request that shares a prefix. It stays, as a leaf."""
        shared = self._prefixes[int(self._rng.integers(len(self._prefixes)))]
        tokens = shared + self._tokens(num_tokens - PREFIX_LEN)
        begin_s = time.perf_counter()
        num_matched = self._tree.match("", tokens)
        self._add(tokens)
        elapsed_ms = (time.perf_counter() - begin_s) * 1e3
        if num_matched * PAGE_SIZE != PREFIX_LEN:
            raise RuntimeError("the request does not share what it should")
        return elapsed_ms

    def _add(self, tokens: bytes) -> None:
        receipt, locked = self._tree.lock("", tokens)
        num_new = len(tokens) // self._tree.page_bytes - len(locked)
        pages, self._free_pages = self._free_pages[:num_new], self._free_pages[num_new:]
        self._tree.insert(receipt, tokens[len(locked) * self._tree.page_bytes :], pages)
        self._tree.unlock(receipt)

    def _tokens(self, num_tokens: int) -> bytes:
        """Random whole pages, as the tree takes them."""
        num_tokens -= num_tokens % PAGE_SIZE
        drawn: NDArray[np.int32] = self._rng.integers(VOCAB_SIZE, size=num_tokens, dtype=np.int32)
        return drawn.tobytes()


def best_and_median(times_ms: Sequence[float]) -> dict[str, float]:
    return {"best": min(times_ms), "median": statistics.median(times_ms)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    tree = LargeTree(args.leaves, args.repeats * args.request_len // PAGE_SIZE)
    summary = {
        "tree_request_ms": best_and_median(
            [tree.request_ms(args.request_len) for _ in range(args.repeats)]
        )
    }
    times_ms = scheduler_times(args.rows, args.repeats, args.prompt_len)
    return summary | {f"step_{name}_ms": best_and_median(t) for name, t in times_ms.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, default=10_000)
    parser.add_argument("--request-len", type=int, default=2500, help="tokens; over 1,024")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--prompt-len", type=int, default=1024, help="of each row")
    parser.add_argument("--repeats", type=int, default=300, help="requests, and steps")
    parser.add_argument("--output", help="file for the result, as JSON")
    args = parser.parse_args(argv)
    summary = run(args)
    show(summary)
    write_result(args.output, "host_cost", vars(args), summary)


if __name__ == "__main__":
    main()
