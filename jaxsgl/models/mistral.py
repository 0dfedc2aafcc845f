"""Mistral 7B and its successors (arXiv:2310.06825)."""

from __future__ import annotations

from jaxsgl.models.llama import Llama


class Mistral(Llama):
    """Llama, but that every layer of the first versions sees only the last tokens
    (`ModelConfig.windowed_layers`); what is farther back reaches a token through other layers."""
