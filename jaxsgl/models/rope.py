"""Rotary position embedding (RoFormer, arXiv:2104.09864) in the half-split form of HuggingFace's
Llama, and the ways to stretch it over longer contexts."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxsgl.models.model_config import ModelConfig, RopeScaling

ROPE_SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")

RopeTables = tuple[jax.Array, jax.Array]
"""Cosine and sine of every angle, float32 [tokens, 1, rotary_dim / 2]."""


def rope_frequencies(config: ModelConfig, *, local: bool = False) -> NDArray[np.float32]:
    """Angle per position of each pair of rotated dimensions, [rotary_dim / 2].

    `local` is for windowed layers, which may have frequencies of their own. Raises ValueError for a
    scaling kind that has no formula here.
    """
    dim = config.rotary_dim or config.head_dim
    if local and config.local_rope_theta is not None:
        return _plain(config.local_rope_theta, dim).astype(np.float32)
    scaling, frequencies = config.rope_scaling, _plain(config.rope_theta, dim)
    if scaling is None:
        return frequencies.astype(np.float32)
    match scaling.kind:
        case "linear":
            frequencies = frequencies / scaling.factor
        case "dynamic":
            frequencies = _dynamic_frequencies(config, scaling, dim)
        case "llama3":
            frequencies = _llama3_frequencies(frequencies, scaling)
        case "yarn":
            frequencies = _yarn_frequencies(frequencies, config.rope_theta, scaling)
        case "longrope":
            frequencies = frequencies / np.array(_longrope_divisors(config, scaling))
        case kind:
            known = ", ".join(ROPE_SCALINGS)
            raise ValueError(f"rope scaling {kind!a} is unknown; known: {known}")
    return frequencies.astype(np.float32)


def rope_magnitude(config: ModelConfig, *, local: bool = False) -> float:
    """What cosines and sines are multiplied by."""
    if config.rope_scaling is None or (local and config.local_rope_theta is not None):
        return 1.0
    return config.rope_scaling.magnitude


def _plain(theta: float, dim: int) -> NDArray[np.float64]:
    return theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)


def _llama3_frequencies(
    frequencies: NDArray[np.float64], scaling: RopeScaling
) -> NDArray[np.float64]:
    """Llama 3.1's rule: waves longer than the original context are stretched, short ones are kept.

    Between `low_freq_factor` and `high_freq_factor` turns per original context the two blend.
    """
    turns = scaling.original_context_len * frequencies / (2 * math.pi)
    kept_share = np.clip(
        (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor),
        0.0,
        1.0,
    )
    return kept_share * frequencies + (1.0 - kept_share) * frequencies / scaling.factor


def _dynamic_frequencies(
    config: ModelConfig, scaling: RopeScaling, dim: int
) -> NDArray[np.float64]:
    """NTK-aware scaling for the context that is served: of none up to the original length.

    Elsewhere it follows the length of each sequence; here keys that are cached, and shared, must
    keep their angles.
    """
    stretch = scaling.factor * config.context_len / scaling.original_context_len
    growth = max(1.0, stretch - (scaling.factor - 1.0))
    return _plain(config.rope_theta * growth ** (dim / (dim - 2)), dim)


def _yarn_frequencies(
    frequencies: NDArray[np.float64], theta: float, scaling: RopeScaling
) -> NDArray[np.float64]:
    """YaRN (arXiv:2309.00071): a ramp over the dimensions, from kept to stretched frequencies."""
    dim = 2 * len(frequencies)

    def dimension_of(turns: float) -> float:
        """The dimension whose wave turns so often in the original context."""
        wave = scaling.original_context_len / (turns * 2 * math.pi)
        return dim * math.log(wave) / (2 * math.log(theta))

    low = max(math.floor(dimension_of(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension_of(scaling.beta_slow)), dim - 1)
    ramp = (np.arange(len(frequencies)) - low) / ((high - low) or 0.001)
    stretched_share = np.clip(ramp, 0.0, 1.0)
    return frequencies * (1.0 - stretched_share + stretched_share / scaling.factor)


def _longrope_divisors(config: ModelConfig, scaling: RopeScaling) -> tuple[float, ...]:
    """LongRoPE's (arXiv:2402.13753), for the context that is served; see `_dynamic_frequencies`."""
    is_long = config.context_len > scaling.original_context_len
    return scaling.long_factors if is_long else scaling.short_factors


def rope_tables(
    frequencies: NDArray[np.float32], positions: jax.Array, magnitude: float = 1.0
) -> RopeTables:
    """The tables of positions [tokens], for `rotate`."""
    angles = positions.astype(jnp.float32)[:, None, None] * frequencies
    cos, sin = jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude
    # Without the barrier XLA computes them again for every head of every layer.
    return jax.lax.optimization_barrier((cos, sin))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn each pair (d, d + rotary_dim / 2) of x [tokens, heads, head_dim] by its angle.

    Dimensions from rotary_dim on stay as they are.
    """
    half = cos.shape[-1]
    x32 = x.astype(jnp.float32)
    first, second, rest = x32[..., :half], x32[..., half : 2 * half], x32[..., 2 * half :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    if rest.shape[-1]:
        turned.append(rest)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
