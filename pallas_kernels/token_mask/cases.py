"""Named inputs of token masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Case:
    name: str
    rows: int
    vocab: int
    num_masks: int = 3
    words: int | None = None
    """Words of a mask; as many as the vocabulary needs if None."""
    share_allowed: float = 0.5
    mask_rows: tuple[int, ...] | None = None
    """Drawn from -1 and the masks' numbers if None."""


class Inputs(NamedTuple):
    """The arrays, in the order of `api.mask_logits`."""

    logits: NDArray[np.float32]
    masks: NDArray[np.uint32]
    mask_row: NDArray[np.int32]


CASES = (
    Case("a batch", 9, 1000),
    Case("one row", 1, 1000, num_masks=1, mask_rows=(0,)),
    Case("no row has a mask", 4, 320, num_masks=1, mask_rows=(-1, -1, -1, -1)),
    Case("rows share a mask", 5, 320, num_masks=2, mask_rows=(1, 1, 0, 1, -1)),
    Case("numbers of no mask", 4, 320, num_masks=2, mask_rows=(2, -1, 2**31 - 1, -(2**31))),
    Case("vocabulary of whole words", 3, 64),
    Case("vocabulary of less than a word", 3, 7),
    Case("several programs per row", 3, 9001),
    Case("vocabulary of whole programs", 3, 8192),
    Case("masks shorter than the vocabulary", 4, 1000, words=20),
    Case("masks longer than the vocabulary", 4, 1000, words=40),
    Case("nothing is allowed", 3, 500, share_allowed=0.0),
    Case("all is allowed", 3, 500, share_allowed=1.0),
)


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Some logits are not finite, and bits beyond the vocabulary are set at random."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((case.rows, case.vocab), np.float32)
    logits[:, ::5] = rng.choice([np.nan, np.inf, -np.inf], logits[:, ::5].shape)
    words = -(-case.vocab // 32) if case.words is None else case.words
    bits = rng.random((case.num_masks, words * 32)) < case.share_allowed
    masks = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    if case.mask_rows is None:
        mask_row = rng.integers(-1, case.num_masks, case.rows).astype(np.int32)
    else:
        mask_row = np.array(case.mask_rows, np.int32)
    return Inputs(logits, masks, mask_row)
