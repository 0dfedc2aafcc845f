"""Every family in every format: the same configuration and, on the device, the same weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsgl
from jaxsgl.convert import convert
from jaxsgl.loading.checkpoint import Checkpoint, open_checkpoint
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.orbax_checkpoint import OrbaxCheckpoint
from jaxsgl.models.registry import model_class
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.weights import Model, load_weights
from tests.loading.family_files import write_folder, write_gguf
from tests.models.families import FAMILIES, family_model
from tests.models.tiny import one_device_mesh

IN_GGUF = [
    name
    for name in FAMILIES
    # Which GGUF has no words for: a factor that follows the length, a window in the upper layers,
    # experts in some layers.
    if name not in ("llama_dynamic", "qwen2_yarn", "qwen3_moe_mixed")
]


def load(checkpoint: Checkpoint | OrbaxCheckpoint) -> Model:
    config = checkpoint.config
    layout = resolve_layout(config, one_device_mesh())
    family = model_class(config.architecture)
    if isinstance(checkpoint, OrbaxCheckpoint):
        return checkpoint.restore(family, layout, jnp.float32, lambda done, total: None)
    return load_weights(family, config, checkpoint, layout, jnp.float32)


def same_weights(one: Model, other: Model) -> bool:
    pairs = zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True)
    return all(np.array_equal(left, right) for left, right in pairs)


def rounded(config: object) -> object:
    """A configuration as far as a GGUF keeps it: numbers have 32 bits there."""
    match config:
        case float():
            return float(np.float32(config))
        case tuple():
            return tuple(rounded(item) for item in config)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        return type(config)(**{key: rounded(value) for key, value in values.items()})
    return config


@pytest.mark.parametrize("name", FAMILIES)
def test_safetensors_and_orbax_hold_the_model(tmp_path: Path, name: str) -> None:
    golden = family_model(name)
    stored = open_checkpoint(write_folder(tmp_path / "model", golden))
    assert dataclasses.replace(stored.config, name="") == golden.config
    for tensor in stored.names():
        np.testing.assert_array_equal(stored.tensor(tensor), golden.tensor(tensor))
    convert(stored, tmp_path / "orbax", "float32")
    converted = open_checkpoint(tmp_path / "orbax")
    assert converted.config == stored.config
    assert same_weights(load(converted), load(stored))


@pytest.mark.parametrize("name", IN_GGUF)
def test_gguf_holds_the_model(tmp_path: Path, name: str) -> None:
    golden = family_model(name)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", golden))
    expected = dataclasses.replace(golden.config, name="model")
    found = checkpoint.config
    if expected.attention_scale is not None:
        assert found.attention_scale == pytest.approx(expected.attention_scale, rel=1e-6)
        expected = dataclasses.replace(expected, attention_scale=found.attention_scale)
    assert rounded(found) == rounded(expected)
    for tensor in checkpoint.names():
        # Gemma's norms are stored with 1 added: in 32 bits that may cost the last one.
        atol = 1e-7 if golden.config.norm_offset and "norm" in tensor else 0.0
        np.testing.assert_allclose(
            checkpoint.tensor(tensor), golden.tensor(tensor), rtol=0, atol=atol, err_msg=tensor
        )


def test_older_files_of_latent_attention(tmp_path: Path) -> None:
    golden = family_model("deepseek_v2")
    checkpoint = open_checkpoint(write_gguf(tmp_path / "old.gguf", golden, split_kv_b=False))
    for tensor in checkpoint.names():
        np.testing.assert_array_equal(checkpoint.tensor(tensor), golden.tensor(tensor))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_that_is_cut_short_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "model", family_model(name))
    files = [folder / "model.safetensors"]
    if name in IN_GGUF:
        files.append(write_gguf(tmp_path / "model.gguf", family_model(name)))
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-1000])
        path = folder if file.parent == folder else file
        with pytest.raises(CheckpointError, match=r"^\S+: '\S+\.(weight|bias)' [^\n]+$") as caught:
            open_checkpoint(path)
        assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_familys_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """The weights of another, under the configuration of this one."""
    mine, others = family_model(name), family_model("phi3" if "gemma" in name else "gemma2")
    folder = write_folder(tmp_path / "model", others)
    config = write_folder(tmp_path / "mine", mine) / "config.json"
    (folder / "config.json").write_bytes(config.read_bytes())
    with pytest.raises(CheckpointError, match=r"^[^\n]*'\S+\.(weight|bias)'[^\n]*$") as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_engine_says_the_same_from_every_format(tmp_path: Path, name: str) -> None:
    golden = family_model(name)
    paths = [write_folder(tmp_path / "model", golden), tmp_path / "orbax"]
    convert(open_checkpoint(paths[0]), paths[1], "float32")
    if name in IN_GGUF:
        paths.append(write_gguf(tmp_path / "model.gguf", golden))
    answers = [generate(path, golden.input_ids[:40].tolist()) for path in paths]
    assert len(answers[0]) == 24 and len(set(answers[0])) > 1
    assert answers == answers[:1] * len(paths)


def generate(path: Path, prompt: list[int]) -> list[int]:
    settings = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_num_reqs": 2,
        "chunked_prefill_size": 16,
        "max_total_tokens": 512,
        "compilation_cache_dir": str(path.parent / "programs"),
    }
    sampling = {"max_new_tokens": 24, "temperature": 0.0, "ignore_eos": True}
    with jaxsgl.Engine(model_path=path, **settings) as engine:
        return engine.generate(input_ids=prompt, sampling_params=sampling)["output_ids"]
