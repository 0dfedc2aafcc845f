"""The finite set of step shapes that are compiled, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxsgl.step import StepLimits, StepMode, StepPlan

MIN_MIXED_LOGITS = 2
"""With one, a GPU would write out the head in float32 to multiply it, 2 GB for Llama 3: cuBLAS,
which large steps leave their products to, has none of a single row."""
FAR_APART = 512
"""Tokens between two sizes of steps that matter where a step's time is promised."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Padded sizes to choose from, ascending. Fewer cost steps, more cost start time."""

    decode_rows: tuple[int, ...]
    shared_rows: tuple[int, ...]
    """Of interest where `StepLimits.pack_rows` is not 0."""
    mixed_tokens: tuple[int, ...]
    logits: tuple[int, ...]
    """Each is as many draw programs as there are ways to draw."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Padded sizes of a step; each bucket is one forward program."""

    mode: StepMode
    num_tokens: int
    num_rows: int
    num_logits: int

    @property
    def name(self) -> str:
        return f"{self.mode}_{self.num_tokens}x{self.num_logits}"

    @property
    def num_rounds(self) -> int:
        """Passes through the model."""
        return self.num_tokens // self.num_rows if self.mode == "chain" else 1

    @property
    def tokens_at_once(self) -> int:
        """In each of them."""
        return self.num_tokens // self.num_rounds

    def fits(self, plan: StepPlan) -> bool:
        runs_mode = self.mode == plan.mode or (self.mode == "decode" and plan.mode == "shared")
        return (
            runs_mode
            and plan.num_tokens <= self.num_tokens
            and plan.num_rows <= self.num_rows
            and len(plan.logit_idx) <= self.num_logits
        )


def make_buckets(limits: StepLimits, sizes: Sizes) -> tuple[Bucket, ...]:
    """Buckets that between them fit every plan within `limits`, cheapest first for each mode.

    Steps that share prefixes have buckets of their own, and run as any other where those are too
    small. Decode buckets grow by rows, and so do chains, if there are any. Mixed buckets grow by
    tokens, at the most rows that many tokens can have: rows cost little there, programs cost start
    time. If a step may want more logits than rows, one more bucket has room for them.
    `limits.mixed_sizes` wins over those of `sizes`.
    """

    def num_logits(num_rows: int) -> int:
        return min((n for n in sizes.logits if n >= num_rows), default=limits.max_rows)

    shared = [
        Bucket("shared", n, n, min(num_logits(n), limits.max_rows))
        for n in sizes.shared_rows
        if limits.pack_rows and n <= limits.max_rows
    ]
    decode = [
        Bucket("decode", n, n, min(num_logits(n), limits.max_rows))
        for n in up_to(limits.max_rows, sizes.decode_rows)
    ]
    chains = [
        Bucket("chain", n * limits.chain_len, n, n * limits.chain_len)
        for n in up_to(limits.max_rows, sizes.decode_rows)
        if limits.chain_len > 1
    ]
    mixed: list[Bucket] = []
    for tokens in limits.mixed_sizes or up_to(limits.max_tokens, sizes.mixed_tokens):
        rows = min(tokens, limits.max_rows)
        logits = max(MIN_MIXED_LOGITS, min(num_logits(rows), limits.max_rows))
        mixed.append(Bucket("mixed", tokens, rows, logits))
    if limits.max_logits > max(limits.max_rows, MIN_MIXED_LOGITS):
        mixed.append(Bucket("mixed", limits.max_tokens, limits.max_rows, limits.max_logits))
    return tuple(shared + decode + chains + mixed)


def up_to(largest: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Those of `sizes` below the largest, and the largest."""
    return (*(n for n in sizes if n < largest), largest)


def finer(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """With one more size halfway between two that are far apart."""
    between = {(a + b) // 2 for a, b in pairwise(sizes) if b - a >= FAR_APART}
    return tuple(sorted({*sizes, *between}))


def pick_bucket(buckets: Sequence[Bucket], plan: StepPlan) -> Bucket:
    """The first bucket that fits. Raises ValueError for a plan beyond the limits."""
    for bucket in buckets:
        if bucket.fits(plan):
            return bucket
    raise ValueError(
        f"no {plan.mode} program for {plan.num_rows} rows, {plan.num_tokens} tokens and "
        f"{len(plan.logit_idx)} logits"
    )
