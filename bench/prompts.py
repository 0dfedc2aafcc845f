"""Prompts that need no download: token ids drawn from a seed."""

from __future__ import annotations

import random

FIRST_ID = 32
"""Ids below are control tokens in most vocabularies."""


def random_prompts(rng: random.Random, count: int, length: int, vocab_size: int) -> list[list[int]]:
    """`count` prompts that share nothing."""
    return [[rng.randrange(FIRST_ID, vocab_size) for _ in range(length)] for _ in range(count)]


def shared_prefix_prompts(
    rng: random.Random,
    count: int,
    length: int,
    vocab_size: int,
    *,
    num_prefixes: int,
    prefix_len: int,
) -> list[list[int]]:
    """`count` prompts of `length` tokens, of which the first `prefix_len` are one of
    `num_prefixes`, in random order."""
    prefixes = random_prompts(rng, num_prefixes, prefix_len, vocab_size)
    rests = random_prompts(rng, count, length - prefix_len, vocab_size)
    prompts = [prefixes[n % num_prefixes] + rest for n, rest in enumerate(rests)]
    rng.shuffle(prompts)
    return prompts
