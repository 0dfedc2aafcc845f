"""Llama 2 and 3, and models of the same shape (SmolLM2): pre-norm decoder with grouped-query
attention, rotary positions and SwiGLU (arXiv:2302.13971, arXiv:2407.21783)."""

from __future__ import annotations

from jaxsgl.models.decoder import Decoder


class Llama(Decoder):
    """The decoder that others differ from. Llama 3.1 stretches rotary frequencies (`llama3`)."""
