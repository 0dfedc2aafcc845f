"""The tiny models of tests/models/families.py in the formats that checkpoints come in.

GGUF files are written by the `gguf` package, with the names that its own table gives, and by the
conventions of llama.cpp's converter (convert_hf_to_gguf.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.models.families import FamilyModel

Weights = dict[str, NDArray[np.float32]]
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
}
PERMUTED = ("llama", "mistral", "mixtral", "smollm3")
EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")


def write_folder(folder: Path, model: FamilyModel) -> Path:
    """A HuggingFace folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model.raw_config))
    save_file(model.weights(), folder / "model.safetensors")
    return folder


def write_gguf(path: Path, model: FamilyModel, *, split_kv_b: bool = True) -> Path:
    """A file in float32; `split_kv_b` is how newer converters store latent attention."""
    raw = model.raw_config
    arch = ARCHITECTURES[raw["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _write_sizes(writer, raw)
    _EXTRA.get(raw["model_type"], lambda writer, raw: None)(writer, raw)
    if raw["model_type"] == "deepseek_v2":
        _write_latent_sizes(writer, raw, split_kv_b)
    names = gguf.get_tensor_name_map(arch, raw["num_hidden_layers"])
    for name, values in _tensors(model, split_kv_b).items():
        module, _, kind = name.rpartition(".")
        in_file = names.get_name(module)
        assert in_file is not None, name
        writer.add_tensor(f"{in_file}.{kind}", np.ascontiguousarray(values, np.float32))
    if "short_factor" in _rope(raw):
        for length in ("short", "long"):
            factors = np.array(_rope(raw)[f"{length}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_sizes(writer: gguf.GGUFWriter, raw: Mapping[str, Any]) -> None:
    rope = _rope(raw)
    writer.add_vocab_size(raw["vocab_size"])
    writer.add_block_count(raw["num_hidden_layers"])
    writer.add_context_length(raw["max_position_embeddings"])
    writer.add_embedding_length(raw["hidden_size"])
    writer.add_feed_forward_length(raw["intermediate_size"])
    writer.add_head_count(raw["num_attention_heads"])
    writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if raw["model_type"] != "deepseek_v2":
        head_dim = raw.get("head_dim", raw["hidden_size"] // raw["num_attention_heads"])
        writer.add_head_count_kv(raw["num_key_value_heads"])
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope.get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        factor = raw["max_position_embeddings"] / original
        magnitude = np.sqrt(1 + np.log(factor) / np.log(original)) if factor > 1 else 1.0
        writer.add_rope_scaling_attn_factors(float(magnitude))


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    rope = raw["rope_parameters"]
    return rope.get("full_attention", rope)


def _window(writer: gguf.GGUFWriter, raw: Mapping[str, Any]) -> None:
    if raw.get("sliding_window"):
        writer.add_sliding_window(raw["sliding_window"])


def _gemma2(writer: gguf.GGUFWriter, raw: Mapping[str, Any]) -> None:
    _window(writer, raw)
    writer.add_attn_logit_softcapping(raw["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(raw["final_logit_softcapping"])


def _mixtral(writer: gguf.GGUFWriter, raw: Mapping[str, Any]) -> None:
    writer.add_expert_count(raw["num_local_experts"])
    writer.add_expert_used_count(raw["num_experts_per_tok"])


def _qwen3_moe(writer: gguf.GGUFWriter, raw: Mapping[str, Any]) -> None:
    writer.add_expert_count(raw["num_local_experts"])
    writer.add_expert_used_count(raw["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(raw["moe_intermediate_size"])


def _deepseek_v2(writer: gguf.GGUFWriter, raw: Mapping[str, Any]) -> None:
    writer.add_leading_dense_block_count(raw["first_k_dense_replace"])
    writer.add_expert_count(raw["n_routed_experts"])
    writer.add_expert_used_count(raw["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(raw["moe_intermediate_size"])
    writer.add_expert_shared_count(raw["n_shared_experts"])
    writer.add_expert_weights_scale(float(raw["routed_scaling_factor"]))
    if raw["topk_method"] == "group_limited_greedy":
        writer.add_expert_group_count(raw["n_group"])
        writer.add_expert_group_used_count(raw["topk_group"])


def _write_latent_sizes(writer: gguf.GGUFWriter, raw: Mapping[str, Any], split: bool) -> None:
    head_dim = raw["qk_nope_head_dim"] + raw["qk_rope_head_dim"]
    writer.add_kv_lora_rank(raw["kv_lora_rank"])
    if raw["q_lora_rank"] is not None:
        writer.add_q_lora_rank(raw["q_lora_rank"])
    writer.add_rope_dimension_count(raw["qk_rope_head_dim"])
    if split:
        writer.add_head_count_kv(1)
        writer.add_key_length(raw["kv_lora_rank"] + raw["qk_rope_head_dim"])
        writer.add_value_length(raw["kv_lora_rank"])
        writer.add_key_length_mla(head_dim)
        writer.add_value_length_mla(raw["v_head_dim"])
    else:
        writer.add_head_count_kv(raw["num_attention_heads"])
        writer.add_key_length(head_dim)
        writer.add_value_length(raw["v_head_dim"])


_EXTRA: dict[str, Callable[[gguf.GGUFWriter, Mapping[str, Any]], None]] = {
    "mistral": _window,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "gemma2": _gemma2,
    "gemma3_text": _window,
    "phi3": _window,
    "deepseek_v2": _deepseek_v2,
}


def _tensors(model: FamilyModel, split_kv_b: bool) -> Weights:
    """What the converter makes of the weights, still under HuggingFace's names."""
    raw, tensors = model.raw_config, dict[str, Any]()
    experts: dict[str, dict[int, NDArray[np.float32]]] = {}
    for name, values in model.weights().items():
        match = EXPERT.fullmatch(name)
        if match is not None:
            stack = experts.setdefault(f"{match[1]}.{match[3]}.weight", {})
            stack[int(match[2])] = values
        elif name.endswith("kv_b_proj.weight") and split_kv_b:
            heads, nope_dim = raw["num_attention_heads"], raw["qk_nope_head_dim"]
            by_head = values.reshape(heads, -1, raw["kv_lora_rank"])
            tensors[name.replace("kv_b", "k_b")] = by_head[:, :nope_dim].swapaxes(1, 2)
            tensors[name.replace("kv_b", "v_b")] = by_head[:, nope_dim:]
        else:
            tensors[name] = _converted(name, values, raw)
    for name, stack in experts.items():
        tensors[name] = np.stack([stack[index] for index in range(len(stack))])
    return tensors


def _converted(
    name: str, values: NDArray[np.float32], raw: Mapping[str, Any]
) -> NDArray[np.float32]:
    if raw["model_type"].startswith("gemma") and name.endswith("norm.weight"):
        return values + 1
    if raw["model_type"] in PERMUTED and ("q_proj" in name or "k_proj" in name):
        key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
        halves = values.reshape(raw[key], 2, -1, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    return values
