"""Gemma 3, text only (arXiv:2503.19786)."""

from __future__ import annotations

from jaxsgl.models.decoder import Rotation
from jaxsgl.models.gemma2 import Gemma2


class Gemma3(Gemma2):
    """Gemma 2 with five windowed layers to each that sees everything, and norms of queries and
    keys in the place of soft caps. Windowed layers rotate faster, and unstretched."""

    def rotation(self, index: int) -> Rotation:
        return "local" if index in self.config.windowed_layers else "global"
