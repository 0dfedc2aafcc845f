"""Sampling by sorting, one row at a time, in float64 from float32 logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def distribution(
    logits: NDArray[np.float32], *, temperature: float, top_k: int, top_p: float, min_p: float
) -> NDArray[np.float64]:
    """The probability [vocab] with which `api.draw` takes each token of one row of logits."""
    if temperature == 0:
        return np.eye(len(logits))[np.argmax(logits)]
    # Weights are float32 by definition: which of them are equal depends on it.
    shifted = (logits - logits.max()) / np.float32(temperature)
    weights = np.exp(shifted).astype(np.float64)
    descending = np.sort(weights)[::-1]
    least = np.float64(np.float32(min_p))
    if 0 < top_k < len(weights):
        least = max(least, descending[top_k - 1])
    if top_p < 1:
        enough = np.cumsum(descending) >= np.float32(top_p) * descending.sum()
        least = max(least, descending[np.argmax(enough)])
    kept = np.where(weights >= least, weights, 0.0)
    return kept / kept.sum()


def adjust_logits(
    logits: NDArray[np.float32],
    *,
    bias: dict[int, float],
    held_ids: list[int],
    output_ids: list[int],
    prompt_ids: list[int],
    presence_penalty: float,
    frequency_penalty: float,
    repetition_penalty: float,
) -> NDArray[np.float64]:
    """`api.adjust_logits` of one row [vocab], told in tokens instead of arrays."""
    adjusted = logits.astype(np.float64)
    for token_id, value in bias.items():
        adjusted[token_id] += value
    for token_id in set(prompt_ids) | set(output_ids):
        positive = adjusted[token_id] > 0
        adjusted[token_id] *= 1 / repetition_penalty if positive else repetition_penalty
    for token_id in set(output_ids):
        adjusted[token_id] -= frequency_penalty * output_ids.count(token_id) + presence_penalty
    adjusted[held_ids] = -np.inf
    return adjusted


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural log-probability of every token of one row [vocab]."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
