"""Token masks, one token at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mask_logits(
    logits: NDArray[np.float32], masks: NDArray[np.uint32], mask_row: NDArray[np.int32]
) -> NDArray[np.float32]:
    """See `api.mask_logits`; the arguments are left alone."""
    masked = logits.copy()
    for row, number in enumerate(mask_row):
        if 0 <= number < len(masks):
            words = [int(word) for word in masks[number]]
            for token in range(logits.shape[1]):
                word = token // 32
                if word >= len(words) or not words[word] >> token % 32 & 1:
                    masked[row, token] = -np.inf
    return masked
