"""The small models of tests/goldens, stored in the formats that checkpoints come in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from jaxsgl.loading.hf_config import hf_model_config
from jaxsgl.models.model_config import ModelConfig
from tests.loading.gguf_bytes import model_entries, model_file

GOLDENS = Path(__file__).parent.parent / "goldens"
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class TinyModel:
    raw_config: dict[str, Any]
    """As in config.json."""
    weights: dict[str, NDArray[np.float32]]

    @property
    def config(self) -> ModelConfig:
        return hf_model_config(self.raw_config, "config.json")


def tiny_model(name: str = "tiny_llama") -> TinyModel:
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        weights = {key: arrays[key] for key in arrays.files if key.endswith((".weight", ".bias"))}
        config = json.loads(str(arrays["config"]))
    return TinyModel(config, {key: value.astype(np.float32) for key, value in weights.items()})


def write_gguf(path: Path, model: TinyModel, **metadata: Any) -> Path:
    """Store a model as llama.cpp's converter does; `metadata` is added with its dots as `__`."""
    extra = {key.replace("__", "."): value for key, value in metadata.items()}
    path.write_bytes(model_file(model_entries(model.config) | extra, gguf_tensors(model)))
    return path


def gguf_tensors(model: TinyModel) -> dict[str, NDArray[np.float32]]:
    return {gguf_name(name): _permuted(name, value, model) for name, value in model.weights.items()}


def gguf_name(name: str) -> str:
    for ours, theirs in GGUF_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _permuted(name: str, value: NDArray[np.float32], model: TinyModel) -> NDArray[np.float32]:
    """llama.cpp's order of the rows of q and k: halves of a head become neighbours, in Llama."""
    if model.config.architecture != "llama":
        return value
    if "q_proj" in name:
        num_heads = model.config.num_q_heads
    elif "k_proj" in name:
        num_heads = model.config.num_kv_heads
    else:
        return value
    halves = value.reshape(num_heads, 2, -1, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def write_folder(folder: Path, model: TinyModel, *, num_shards: int = 1) -> Path:
    """Store a model as a HuggingFace folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.raw_config))
    if num_shards == 1:
        save_file(model.weights, folder / "model.safetensors")
        return folder
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        names = sorted(model.weights)[shard::num_shards]
        save_file({name: model.weights[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
