"""Architectures by the name that checkpoints give them."""

from __future__ import annotations

from collections.abc import Mapping

from jaxsgl.models.deepseek_v2 import DeepseekV2
from jaxsgl.models.gemma2 import Gemma2
from jaxsgl.models.gemma3 import Gemma3
from jaxsgl.models.llama import Llama
from jaxsgl.models.mistral import Mistral
from jaxsgl.models.mixtral import Mixtral
from jaxsgl.models.phi3 import Phi3
from jaxsgl.models.qwen2 import Qwen2
from jaxsgl.models.qwen3 import Qwen3
from jaxsgl.models.qwen3_moe import Qwen3Moe
from jaxsgl.models.smollm3 import SmolLM3
from jaxsgl.models.weights import ModelClass

MODEL_CLASSES: Mapping[str, ModelClass] = {
    "llama": Llama,
    "mistral": Mistral,
    "mixtral": Mixtral,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "qwen3_moe": Qwen3Moe,
    "gemma2": Gemma2,
    "gemma3_text": Gemma3,
    "phi3": Phi3,
    "smollm3": SmolLM3,
    "deepseek_v2": DeepseekV2,
}


def model_class(architecture: str) -> ModelClass:
    """The module that computes an architecture. Raises ValueError, listing the known ones."""
    if architecture not in MODEL_CLASSES:
        known = ", ".join(MODEL_CLASSES)
        raise ValueError(f"architecture {architecture!a} is unknown; known: {known}")
    return MODEL_CLASSES[architecture]
