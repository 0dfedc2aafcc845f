"""Qwen 3, the dense models (arXiv:2505.09388)."""

from __future__ import annotations

from jaxsgl.models.llama import Llama


class Qwen3(Llama):
    """Llama whose queries and keys are normalised head by head before they are rotated
    (`ModelConfig.qk_norm`), with heads that need not add up to the hidden size."""
