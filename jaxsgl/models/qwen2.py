"""Qwen 2 and 2.5 (arXiv:2407.10671)."""

from __future__ import annotations

from jaxsgl.models.llama import Llama


class Qwen2(Llama):
    """Llama with biases on q, k and v (`ModelConfig.attention_bias`). The upper layers may look
    back through a window only."""
