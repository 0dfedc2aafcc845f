"""How a checkpoint stretches its rotary frequencies, from config.json."""

from __future__ import annotations

import math

from jaxsgl.loading.config_fields import ConfigFields, shown
from jaxsgl.models.model_config import RopeScaling


def hf_rope_scaling(
    rope: ConfigFields, context_len: int, original_len: int | None
) -> RopeScaling | None:
    """Return the scaling that `rope` describes.

    `context_len` is the model's max_position_embeddings, `original_len` the length before
    stretching where config.json says so outside of `rope`.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "su":  # Phi-3's first name for it.
        kind = "longrope"
    match kind:
        case "default":
            return None
        case "linear":
            return RopeScaling(kind, rope.positive("factor"))
        case "dynamic":
            return RopeScaling(kind, rope.positive("factor"), original_context_len=context_len)
        case "llama3":
            return RopeScaling(
                kind,
                rope.positive("factor"),
                rope.positive("low_freq_factor"),
                rope.positive("high_freq_factor"),
                rope.integer("original_max_position_embeddings"),
            )
        case "yarn":
            return _yarn(rope, context_len)
        case "longrope":
            return _longrope(rope, context_len, original_len)
    known = "linear, dynamic, llama3, yarn, longrope"
    raise rope.error("rope_type", f"is {shown(kind)}, which is unsupported; known: {known}")


def yarn_growth(factor: float, weight: float = 1.0) -> float:
    """By how much longer contexts should sharpen attention (arXiv:2309.00071, section 3.4)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _yarn(rope: ConfigFields, context_len: int) -> RopeScaling:
    original = rope.integer("original_max_position_embeddings", context_len)
    if original < 1:
        raise rope.error("original_max_position_embeddings", f"is {original}, not positive")
    factor = rope.positive("factor", context_len / original)
    if not rope.flag("truncate", True):
        raise rope.error("truncate", "is false, which is unsupported")
    weight, weight_all = rope.real("mscale", 0.0), rope.real("mscale_all_dim", 0.0)
    magnitude = yarn_growth(factor)
    if weight and weight_all:
        magnitude = yarn_growth(factor, weight) / yarn_growth(factor, weight_all)
    return RopeScaling(
        "yarn",
        factor,
        original_context_len=original,
        magnitude=rope.positive("attention_factor", magnitude),
        beta_fast=rope.positive("beta_fast", 32.0),
        beta_slow=rope.positive("beta_slow", 1.0),
    )


def _longrope(rope: ConfigFields, context_len: int, original_len: int | None) -> RopeScaling:
    original = rope.integer("original_max_position_embeddings", original_len or context_len)
    if original < 2:
        raise rope.error("original_max_position_embeddings", f"is {original}, not above 1")
    factor = rope.positive("factor", context_len / original)
    return RopeScaling(
        "longrope",
        factor,
        original_context_len=original,
        magnitude=rope.positive("attention_factor", longrope_magnitude(factor, original)),
        short_factors=rope.reals("short_factor"),
        long_factors=rope.reals("long_factor"),
    )


def longrope_magnitude(factor: float, original_len: int) -> float:
    """LongRoPE's (arXiv:2402.13753)."""
    return math.sqrt(1.0 + math.log(factor) / math.log(original_len)) if factor > 1.0 else 1.0
