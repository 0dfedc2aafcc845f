"""SmolLM3 (huggingface.co/HuggingFaceTB/SmolLM3-3B)."""

from __future__ import annotations

from jaxsgl.models.llama import Llama


class SmolLM3(Llama):
    """Llama in which every fourth layer knows no positions (`ModelConfig.unrotated_layers`;
    arXiv:2501.18795)."""
