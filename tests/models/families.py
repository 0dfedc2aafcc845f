"""The tiny models of tests/goldens/family_*.npz: configuration, weights, and expected logits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxsgl.loading.hf_config import hf_model_config
from jaxsgl.loading.model_tensors import expected_shapes
from jaxsgl.models.model_config import ModelConfig
from tests.goldens.drawn_weights import drawn_tokens, drawn_weight

GOLDENS = Path(__file__).parent.parent / "goldens"
FAMILIES = tuple(sorted(path.stem.removeprefix("family_") for path in GOLDENS.glob("family_*.npz")))
NUM_TOKENS = 64
SEED = 7


@dataclass(frozen=True)
class FamilyModel:
    """A checkpoint whose logits after each of `input_ids` HuggingFace computed."""

    raw_config: dict[str, Any]
    """As in config.json."""
    logits: NDArray[np.float32]

    @property
    def config(self) -> ModelConfig:
        return hf_model_config(self.raw_config, "config.json")

    @property
    def input_ids(self) -> NDArray[np.int32]:
        return drawn_tokens(NUM_TOKENS, self.raw_config["vocab_size"], seed=SEED)

    def tensor(self, name: str) -> NDArray[np.float32]:
        config = self.config
        shape = expected_shapes(config)[name]
        return drawn_weight(name, shape, seed=SEED, norm_mean=1.0 - config.norm_offset)

    def weights(self) -> dict[str, NDArray[np.float32]]:
        return {name: self.tensor(name) for name in expected_shapes(self.config)}


def family_model(name: str) -> FamilyModel:
    with np.load(GOLDENS / f"family_{name}.npz") as arrays:
        return FamilyModel(json.loads(str(arrays["config"])), arrays["logits"])
