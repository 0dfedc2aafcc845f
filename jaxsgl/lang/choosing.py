"""Which of some texts a model likes best, given log-probabilities of their tokens. Pure.

The methods are those of SGLang's `select`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from jaxsgl.lang.backend import Choice
from jaxsgl.lang.expressions import SelectMethod


@dataclass(frozen=True, slots=True)
class Scored:
    """One text: its tokens, at least one, each with its log-probability after those before it."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    unconditional: tuple[float, ...] | None = None
    """Log-probabilities of the same tokens without the text before them."""


def choose(scored: Sequence[Scored], method: SelectMethod) -> Choice:
    """The first of the best."""
    means = [fmean(each.logprobs) for each in scored]
    meta: dict[str, Any] = {
        "method": method,
        "choices": [each.text for each in scored],
        "normalized_prompt_logprobs": means,
        "input_token_logprobs": [
            list(zip(each.logprobs, each.token_ids, strict=True)) for each in scored
        ],
    }
    match method:
        case "token_length_normalized":
            scores = means
        case "unconditional_likelihood_normalized":
            alone = [fmean(each.unconditional or (0.0,)) for each in scored]
            scores = [mean - other for mean, other in zip(means, alone, strict=True)]
        case "greedy_token_selection":
            survivor = _survivor(scored, means)
            scores = [float(index == survivor) for index in range(len(scored))]
    best = max(range(len(scored)), key=scores.__getitem__)
    return Choice(scored[best].text, meta | {"scores": scores})


def _survivor(scored: Sequence[Scored], means: list[float]) -> int:
    """Token by token, those remain that begin with the likeliest one; a text that is over counts by
    its mean."""
    remaining = list(range(len(scored)))
    for position in range(max(len(each.token_ids) for each in scored)):
        best = max(remaining, key=lambda index: _value(scored[index], means[index], position))
        # The same token scored twice may differ in the last bits, so ids are compared, not values.
        token = _token(scored[best], position)
        if token is None:
            return best
        remaining = [index for index in remaining if _token(scored[index], position) == token]
        if len(remaining) == 1:
            break
    return remaining[0]


def _value(each: Scored, mean: float, position: int) -> float:
    return each.logprobs[position] if position < len(each.logprobs) else mean


def _token(each: Scored, position: int) -> int | None:
    return each.token_ids[position] if position < len(each.token_ids) else None
