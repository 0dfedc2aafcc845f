"""Where a GGUF file keeps each tensor of a model, by llama.cpp's names.

https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

from jaxsgl.loading.model_tensors import Shapes, expected_shapes
from jaxsgl.models.model_config import ModelConfig

_TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_NORMS_AFTER = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
"""What a family calls its norms that has some after each block, too."""
_EXPERT_NAMES = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}
_LAYER_TENSOR = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)")


@dataclass(frozen=True, slots=True)
class GgufPlace:
    """One tensor of a model in a file: a whole tensor, one of an expert in a stack of all of them,
    or two that belong together."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """(name, shape) of each tensor of the file that is needed."""
    expert: int | None = None
    """Index into the outermost dimension."""


def gguf_places(config: ModelConfig, found: Container[str]) -> dict[str, GgufPlace]:
    """Return HuggingFace's name of every tensor of the model -> where it is, in a file with tensors
    of the names `found`."""
    return {
        name: _place(config, name, shape, found) for name, shape in expected_shapes(config).items()
    }


def needed_shapes(places: dict[str, GgufPlace]) -> Shapes:
    """Name and shape of every tensor that the file must have."""
    return dict(pair for place in places.values() for pair in place.shapes)


def _place(
    config: ModelConfig, name: str, shape: tuple[int, ...], found: Container[str]
) -> GgufPlace:
    if name in _TOP_NAMES:
        return GgufPlace(((_TOP_NAMES[name], shape),))
    match = _LAYER_TENSOR.fullmatch(name)
    assert match is not None, name
    block, module, kind = f"blk.{match[1]}", match[2], match[3]
    expert = _EXPERT.fullmatch(module)
    if expert is not None:
        assert config.experts is not None
        stack = (config.experts.num_experts, *shape)
        in_file = f"{block}.{_EXPERT_NAMES[expert[2]]}.{kind}"
        return GgufPlace(((in_file, stack),), expert=int(expert[1]))
    if module == "self_attn.kv_b_proj" and f"{block}.attn_kv_b.{kind}" not in found:
        return _split_kv_b(config, block)
    names = _LAYER_NAMES | _NORMS_AFTER if config.norms_after else _LAYER_NAMES
    return GgufPlace(((f"{block}.{names[module]}.{kind}", shape),))


def _split_kv_b(config: ModelConfig, block: str) -> GgufPlace:
    """Newer files have the matrices of keys, transposed, and of values apart."""
    latent, heads = config.latent, config.num_q_heads
    assert latent is not None
    key = (heads, latent.kv_rank, latent.nope_dim)
    value = (heads, latent.value_dim, latent.kv_rank)
    return GgufPlace(((f"{block}.attn_k_b.weight", key), (f"{block}.attn_v_b.weight", value)))
