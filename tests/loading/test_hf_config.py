"""config.json as model configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxsgl.loading import json_file
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.hf_config import hf_model_config, read_hf_config
from jaxsgl.models.model_config import ModelConfig, RopeScaling

# As published with Llama 3.2 1B, in the form of transformers 4.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
EXPECTED = ModelConfig(
    architecture="llama",
    vocab_size=128256,
    hidden_size=2048,
    num_layers=16,
    num_q_heads=32,
    num_kv_heads=8,
    head_dim=64,
    mlp_size=8192,
    norm_eps=1e-5,
    rope_theta=500000.0,
    context_len=131072,
    tie_embeddings=True,
    rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
    name="Llama-3.2-1B",
)


def parse(**changes: Any) -> ModelConfig:
    return hf_model_config(LLAMA | changes, "config.json", "Llama-3.2-1B")


def test_the_form_of_transformers_4() -> None:
    assert parse() == EXPECTED


def test_the_form_of_transformers_5() -> None:
    scaling = LLAMA["rope_scaling"] | {"rope_theta": 500000.0}
    assert parse(rope_scaling=None, rope_theta=None, rope_parameters=scaling) == EXPECTED


def test_defaults() -> None:
    optional = ("num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings")
    config = parse(**dict.fromkeys(optional), rope_scaling=None, head_dim=128)
    assert config.num_kv_heads == 32
    assert config.norm_eps == 1e-6
    assert config.rope_theta == 10000.0
    assert config.tie_embeddings is False
    assert config.rope_scaling is None
    assert config.head_dim == 128


def test_qwen2_has_biases_unsaid() -> None:
    unused = {"use_sliding_window": False, "sliding_window": 4096}
    assert parse(model_type="qwen2", layer_types=["full_attention"] * 16, **unused).attention_bias
    assert not parse(**unused).attention_bias


def test_linear_scaling_in_its_old_spelling() -> None:
    config = parse(rope_scaling={"type": "linear", "factor": 2})
    assert config.rope_scaling == RopeScaling("linear", 2.0)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model_type": "gpt_neox"}, "model_type is 'gpt_neox', which is unknown; known: llama"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["llama"]}, "model_type is ['llama']"),
        ({"hidden_size": None}, "hidden_size is None, not an integer"),
        ({"hidden_size": "2048"}, "hidden_size is '2048', not an integer"),
        ({"hidden_size": 2048.0}, "hidden_size is 2048.0, not an integer"),
        ({"hidden_size": True}, "hidden_size is True, not an integer"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"num_hidden_layers": 10**30}, "num_layers is 1000"),
        ({"num_attention_heads": 0}, "num_q_heads is 0"),
        ({"num_key_value_heads": 5}, "32 query heads cannot share 5 kv heads"),
        ({"head_dim": 63}, "head_dim is 63, which is odd"),
        ({"rms_norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, not true or false"),
        ({"rope_scaling": 4.0}, "rope_scaling is not an object"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}, "rope_type is 'ntk'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0.0, not positive"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor is None, not a number"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which is unsupported"),
        ({"attention_bias": True}, "attention_bias is set, which is unsupported"),
        ({"mlp_bias": True}, "mlp_bias is set, which is unsupported"),
        ({"layer_types": ["sliding_attention"]}, "with 1 entries for 16 layers"),
        ({"layer_types": ["sliding_attention"] * 16}, "sliding_window is None, not an integer"),
        ({"layer_types": 1}, "layer_types is 1, which is unsupported"),
        ({"layer_types": [{}]}, "layer_types is [{}], which is unsupported"),
    ],
)
def test_refuses_in_one_line(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(**changes)
    assert str(caught.value).startswith("config.json: ")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"a": NaN}', b"\xff\xfe{", b'{"a":' * 100_000, b"{} {}"]
)
def test_what_is_no_json_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: is not a JSON object"):
        read_hf_config(tmp_path, "x")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(json_file.MAX_JSON_BYTES + 1)  # Sparse: takes no space.
    with pytest.raises(CheckpointError, match="is larger than"):
        read_hf_config(tmp_path, "x")


def test_reads_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_hf_config(tmp_path, "Llama-3.2-1B") == EXPECTED
