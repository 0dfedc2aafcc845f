"""GGUF files as checkpoints: configuration, names, order of rows, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.default_model import default_model_path
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.models.model_config import ModelConfig, RopeScaling
from tests.loading.gguf_bytes import model_entries, model_file
from tests.loading.tiny_models import GOLDENS, TinyModel, gguf_tensors, tiny_model, write_gguf


def write_changed(path: Path, entries: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """Store tiny_llama with some entries and tensors changed; None removes one."""
    model = tiny_model()
    metadata = model_entries(model.config) | entries
    values = gguf_tensors(model) | tensors
    path.write_bytes(
        model_file(
            {key: value for key, value in metadata.items() if value is not None},
            {name: value for name, value in values.items() if value is not None},
        )
    )
    return path


def test_tiny_model(tmp_path: Path) -> None:
    model = tiny_model()
    checkpoint = open_checkpoint(write_gguf(tmp_path / "Tiny-1M.Q4_K_M.gguf", model))
    expected = dataclasses.replace(model.config, name="Tiny-1M")
    for field in ("norm_eps", "rope_theta"):  # Stored in 32 bits.
        assert getattr(checkpoint.config, field) == np.float32(getattr(expected, field))
        expected = dataclasses.replace(expected, **{field: getattr(checkpoint.config, field)})
    assert checkpoint.config == expected
    assert set(checkpoint.names()) == set(model.weights)
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), weight, err_msg=name)


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_untied_head_and_biases(tmp_path: Path, architecture: str) -> None:
    """Both have biases if the file has; they differ in the order of the rows of q and k."""
    model = tiny_model("tiny_qwen2")
    model = TinyModel(model.raw_config | {"model_type": architecture}, model.weights)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "biased.gguf", model))
    assert checkpoint.config.attention_bias
    assert not checkpoint.config.tie_embeddings
    assert set(checkpoint.names()) == set(model.weights)
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), weight, err_msg=name)


def test_default_model_against_transformers() -> None:
    checkpoint = open_checkpoint(default_model_path())
    assert checkpoint.config == ModelConfig(
        architecture="llama",
        vocab_size=49152,
        hidden_size=576,
        num_layers=30,
        num_q_heads=9,
        num_kv_heads=3,
        head_dim=64,
        mlp_size=1536,
        norm_eps=float(np.float32(1e-5)),
        rope_theta=100000.0,
        context_len=8192,
        tie_embeddings=True,
        name="SmolLM2-135M-Instruct",
    )
    golden = json.loads((GOLDENS / "smollm2_tensors.json").read_text())
    assert len(golden) == 6
    for name, expected in golden.items():
        tensor = checkpoint.tensor(name)
        assert list(tensor.shape) == expected["shape"]
        assert tensor.reshape(-1)[expected["places"]].tolist() == expected["values"], name


def test_factors_of_llama3_are_recognised(tmp_path: Path) -> None:
    # Wavelengths of theta 500,000 and 16 dimensions: 6, 32, 168, 867, 4469, 23,000 … Against an
    # original context of 8192 the first four turn more than 4 times, the fifth 1.8 times.
    turns = 8192 / (2 * np.pi * 500_000 ** (4 / 8))
    smooth = (turns - 1) / (4 - 1)
    factors = np.array([1, 1, 1, 1, 1 / ((1 - smooth) / 32 + smooth), 32, 32, 32], np.float32)
    entries = {"llama.rope.freq_base": 500_000.0}
    path = write_changed(tmp_path / "x.gguf", entries, {"rope_freqs.weight": factors})
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.rope_scaling == RopeScaling("llama3", 32.0)
    assert "rope_freqs.weight" not in checkpoint.names()

    factors[4] *= 1.01
    write_changed(path, entries, {"rope_freqs.weight": factors})
    with pytest.raises(CheckpointError, match=r"x\.gguf: 'rope_freqs\.weight'"):
        open_checkpoint(path)


def test_linear_scaling(tmp_path: Path) -> None:
    entries = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    checkpoint = open_checkpoint(write_changed(tmp_path / "x.gguf", entries, {}))
    assert checkpoint.config.rope_scaling == RopeScaling("linear", 4.0)


REFUSED = {
    "unknown architecture": (
        {"general.architecture": "mamba"},
        {},
        "architecture 'mamba' is unknown; known: llama",
    ),
    "no architecture": ({"general.architecture": None}, {}, "architecture"),
    "no layers": ({"llama.block_count": 0}, {}, "num_layers is 0"),
    "two billion layers": ({"llama.block_count": 2**31}, {}, "num_layers"),
    "no heads": ({"llama.attention.head_count": 0}, {}, "num_q_heads is 0"),
    "heads that do not divide": (
        {"llama.attention.head_count_kv": 3},
        {},
        "4 query heads cannot share 3 kv heads",
    ),
    "heads per layer": (
        {"llama.attention.head_count": [4, 4]},
        {},
        "llama.attention.head_count is not one integer",
    ),
    "size in words": ({"llama.embedding_length": "64"}, {}, "embedding_length is not one integer"),
    "no size": ({"llama.embedding_length": None}, {}, "embedding_length is missing"),
    "partial rotary embedding": (
        {"llama.rope.dimension_count": 8},
        {},
        "rope.dimension_count differs from the head dimension 16",
    ),
    "experts, but not how many are used": (
        {"llama.expert_count": 8},
        {},
        "expert_used_count is missing",
    ),
    "unknown scaling": (
        {"llama.rope.scaling.type": "ntk", "llama.rope.scaling.factor": 2.0},
        {},
        "'ntk', which is unsupported",
    ),
    "epsilon NaN": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, {}, "norm_eps"),
    "theta infinite": ({"llama.rope.freq_base": float("inf")}, {}, "rope_theta"),
    "missing tensor": ({}, {"blk.1.ffn_up.weight": None}, "'blk.1.ffn_up.weight' is missing"),
    "misshapen tensor": (
        {},
        {"blk.0.attn_q.weight": np.zeros((64, 32), np.float32)},
        "'blk.0.attn_q.weight' has shape (64, 32), not (64, 64)",
    ),
    "unexpected tensor": (
        {},
        {"blk.2.attn_q.weight": np.zeros((64, 64), np.float32)},
        "'blk.2.attn_q.weight' is not one of this model's",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_one_line(tmp_path: Path, case: str) -> None:
    entries, tensors, fault = REFUSED[case]
    path = write_changed(tmp_path / "bad.gguf", entries, tensors)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert fault in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M", "Llama-3.2-1B-Instruct"),
        ("SmolLM2.IQ2_XXS", "SmolLM2"),
        ("model-BF16", "model"),
        ("model-f16", "model"),
        ("Qwen2-7B", "Qwen2-7B"),
    ],
)
def test_name_is_the_files_without_its_quantisation(tmp_path: Path, stem: str, name: str) -> None:
    assert open_checkpoint(write_gguf(tmp_path / f"{stem}.gguf", tiny_model())).config.name == name
