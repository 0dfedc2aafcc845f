"""Recognises Llama 3's long-context scaling in the table of factors that a GGUF stores instead."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jaxsgl.models.model_config import RopeScaling


def llama3_scaling(
    factors: NDArray[np.float32], rope_theta: float, head_dim: int
) -> RopeScaling | None:
    """Return the scaling whose frequency divisors, [head_dim / 2], are `factors`; None if none is.

    All Llama 3 models share the constants of `RopeScaling` and differ in `factor`, the divisor of
    the lowest frequencies.
    """
    scaling = RopeScaling("llama3", float(factors.max()))
    expected = _divisors(scaling, rope_theta, head_dim)
    if factors.shape == expected.shape and np.allclose(factors, expected, rtol=1e-4, atol=0.0):
        return scaling
    return None


def _divisors(scaling: RopeScaling, rope_theta: float, head_dim: int) -> NDArray[np.float64]:
    """By how much each rotary frequency is divided, highest frequency first."""
    wavelengths = 2.0 * np.pi * rope_theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = scaling.original_context_len / wavelengths
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / scaling.factor + smooth)
