"""Writes family_*.npz: logits that HuggingFace transformers computes for a tiny random model of
each family.

In the environment that make_goldens.py describes: `python tests/goldens/make_family_goldens.py`.
Each file has `config`, the config.json that transformers writes, and `logits` [64, vocab] in
float32 of one forward pass. Weights and tokens are drawn again where they are needed
(drawn_weights.py), by the names and shapes in which transformers stores the model.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawn_weights import drawn_tokens, drawn_weight
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
)

HERE = Path(__file__).parent
NUM_TOKENS = 64
SEED = 7
BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    # Short, so that the ramp lies within the few frequencies of a small head.
    "original_max_position_embeddings": 64,
}
SHORT = [1.0 + 0.05 * i for i in range(12)]
LONG = [1.0 + 0.5 * i for i in range(12)]
DEEPSEEK: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "q_lora_rank": None,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    # Stretched for exactly the tokens that are computed: elsewhere the factor follows the length.
    "llama_dynamic": (
        "llama",
        {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "mistral": ("mistral", {"sliding_window": 20}),
    "qwen2_yarn": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 1,
            "rope_parameters": YARN,
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {
            "num_hidden_layers": 4,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 6,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            "tie_word_embeddings": True,
        },
    ),
    # Heads of 24 as Phi-3's of 96 are no power of two; more tokens than the original context.
    "phi3": (
        "phi3",
        {
            "hidden_size": 96,
            "head_dim": 24,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": SHORT,
                "long_factor": LONG,
                "original_max_position_embeddings": 32,
            },
            "pad_token_id": 0,
        },
    ),
    "phi4_mini": (
        "phi3",
        {
            "head_dim": 32,
            "hidden_size": 128,
            "sliding_window": 40,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": SHORT,
                "long_factor": LONG,
                "original_max_position_embeddings": 256,
                "partial_rotary_factor": 0.75,
            },
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "smollm3": (
        "smollm3",
        {
            "num_hidden_layers": 4,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "qwen3_moe_mixed": (
        "qwen3_moe",
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": False,
            "mlp_only_layers": [1],
        },
    ),
    "deepseek_v2": (
        "deepseek_v2",
        DEEPSEEK | {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    ),
    "deepseek_v2_groups": (
        "deepseek_v2",
        DEEPSEEK
        | {
            "q_lora_rank": 24,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.0,
        },
    ),
}


def main() -> None:
    torch.set_num_threads(2)
    for name, (model_type, changes) in FAMILIES.items():
        write_family(name, AutoConfig.for_model(model_type, **{**BASE, **changes}))


@torch.inference_mode()
def write_family(name: str, config: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        AutoModelForCausalLM.from_config(config).float().save_pretrained(path)
        draw_weights(path, 0.0 if config.model_type.startswith("gemma") else 1.0)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
        stored = json.loads((path / "config.json").read_text())
    ids = drawn_tokens(NUM_TOKENS, config.vocab_size, seed=SEED)
    logits = model.eval()(torch.tensor(ids.tolist())[None]).logits[0].numpy()
    np.savez_compressed(
        HERE / f"family_{name}.npz", config=np.array(json.dumps(stored)), logits=logits
    )
    print(f"{name}: logits up to {np.abs(logits).max():.2f}")


def draw_weights(folder: Path, norm_mean: float) -> None:
    """Replace the values of a stored model, and nothing else."""
    file = folder / "model.safetensors"
    with safe_open(file, "numpy") as tensors:
        shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}
    values = {
        key: drawn_weight(key, shape, seed=SEED, norm_mean=norm_mean)
        for key, shape in shapes.items()
    }
    save_file(values, file, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
