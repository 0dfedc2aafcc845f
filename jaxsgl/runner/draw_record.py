"""How a slot's tokens are drawn, as a record of four-byte fields that travels as int32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jaxsgl.step import SlotOpening

DRAW_FIELDS = {
    "temperature": np.float32,
    "top_p": np.float32,
    "min_p": np.float32,
    "top_k": np.int32,
    "seed_low": np.uint32,
    "seed_high": np.uint32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
    "repetition_penalty": np.float32,
    "has_bias": np.int32,
    "min_len": np.int32,
}
"""`min_len` is the sequence length before which no end token may be drawn; the others are what
`SamplingParams` calls them."""
DRAW_DTYPE = np.dtype(list(DRAW_FIELDS.items()))

NEUTRAL_DRAW = np.array((0.0, 1.0, 0.0, -1, 0, 0, 0.0, 0.0, 1.0, 0, 0), DRAW_DTYPE)
"""Greedy: what padding draws."""


def draw_record(opening: SlotOpening) -> NDArray[np.int32]:
    """The bits of the record, int32 [fields]."""
    sampling = opening.sampling
    assert sampling.seed is not None
    seed = sampling.seed % 2**64
    record = np.array(
        (
            sampling.temperature,
            sampling.top_p,
            sampling.min_p,
            sampling.top_k,
            seed % 2**32,
            seed // 2**32,
            sampling.presence_penalty,
            sampling.frequency_penalty,
            sampling.repetition_penalty,
            bool(sampling.logit_bias),
            opening.prompt_len + sampling.min_tokens if sampling.min_tokens else 0,
        ),
        DRAW_DTYPE,
    )
    return as_ints(record)


def as_ints(record: NDArray[np.void]) -> NDArray[np.int32]:
    return record.reshape(1).view(np.int32)
