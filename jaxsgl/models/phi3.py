"""Phi-3 and Phi-4-mini (arXiv:2404.14219)."""

from __future__ import annotations

from jaxsgl.models.llama import Llama


class Phi3(Llama):
    """Llama whose checkpoints merge q, k and v, and gate and up
    (`ModelConfig.merged_projections`). Long contexts come by LongRoPE; Phi-4-mini rotates three
    quarters of each head."""
