"""HuggingFace folders as checkpoints: single files, shards, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxsgl.loading.checkpoint import Checkpoint, open_checkpoint
from jaxsgl.loading.errors import CheckpointError
from tests.loading.tiny_models import TinyModel, tiny_model, write_folder, write_index

SHARD = "model-00002-of-00003.safetensors"
OTHER_SHARD = "model-00001-of-00003.safetensors"


def assert_holds(checkpoint: Checkpoint, model: TinyModel) -> None:
    assert set(checkpoint.names()) == set(model.weights)
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), weight, err_msg=name)


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_llama3_rope", "tiny_qwen2"])
def test_tiny_models(tmp_path: Path, name: str, num_shards: int) -> None:
    model = tiny_model(name)
    folder = write_folder(tmp_path / "Tiny-1M", model, num_shards=num_shards)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.name == "Tiny-1M"
    assert checkpoint.tokenizer_source == folder
    assert_holds(checkpoint, model)


def test_one_file_of_another_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tiny_model())
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert_holds(open_checkpoint(folder), tiny_model())
    (folder / "more.safetensors").touch()
    with pytest.raises(CheckpointError, match="and 2 other"):
        open_checkpoint(folder)


def test_what_no_model_needs_is_left_out(tmp_path: Path) -> None:
    model = tiny_model()
    extra = {
        "lm_head.weight": model.weights["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    write_folder(tmp_path, TinyModel(model.raw_config, model.weights | extra))
    assert_holds(open_checkpoint(tmp_path), model)


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    model = tiny_model()
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    write_folder(tmp_path, TinyModel(model.raw_config | {"auto_map": auto_map}, model.weights))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    assert_holds(open_checkpoint(tmp_path), model)


def change_index(folder: Path, **changes: str | None) -> None:
    path = folder / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"] | changes
    write_index(folder, {name: file for name, file in weight_map.items() if file is not None})


def spoil_escape(folder: Path) -> None:
    change_index(folder, **{"model.norm.weight": "../../other/model.safetensors"})


def spoil_absolute(folder: Path) -> None:
    change_index(folder, **{"model.norm.weight": "/etc/model.safetensors"})


def spoil_pickle(folder: Path) -> None:
    change_index(folder, **{"model.norm.weight": "pytorch_model.bin"})


def spoil_empty_index(folder: Path) -> None:
    write_index(folder, {})


def spoil_index_json(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{")


def spoil_missing_shard(folder: Path) -> None:
    (folder / SHARD).unlink()


def spoil_truncated_shard(folder: Path) -> None:
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-1])


def spoil_name_in_two_shards(folder: Path) -> None:
    first, second = load_file(folder / OTHER_SHARD), load_file(folder / SHARD)
    name = min(first)
    save_file(second | {name: first[name]}, folder / SHARD)


def spoil_name_in_no_shard(folder: Path) -> None:
    second = load_file(folder / SHARD)
    del second[min(second)]
    save_file(second, folder / SHARD)


def spoil_unlisted_tensor(folder: Path) -> None:
    second = load_file(folder / SHARD)
    save_file(second | {"extra.weight": np.ones(3, np.float32)}, folder / SHARD)


def spoil_missing_tensor(folder: Path) -> None:
    second = load_file(folder / SHARD)
    name = min(second)
    del second[name]
    save_file(second, folder / SHARD)
    change_index(folder, **{name: None})


def spoil_shape(folder: Path) -> None:
    second = load_file(folder / SHARD)
    name = min(second)
    save_file(second | {name: np.ones((1, 2, 3), np.float32)}, folder / SHARD)


def spoil_dtype(folder: Path) -> None:
    second = load_file(folder / SHARD)
    name = min(second)
    save_file(second | {name: second[name].astype(np.int32)}, folder / SHARD)


SPOILERS = {
    spoil_escape: "'model.norm.weight' is in '../../other/model.safetensors', no file here",
    spoil_absolute: "'model.norm.weight' is in '/etc/model.safetensors', no file here",
    spoil_pickle: "'pytorch_model.bin', no file here",
    spoil_empty_index: "model.safetensors.index.json: has no weight_map",
    spoil_index_json: "model.safetensors.index.json: is not a JSON object",
    spoil_missing_shard: f"{SHARD}: cannot be read: No such file",
    spoil_truncated_shard: f"{SHARD}: 'model.",
    spoil_name_in_two_shards: "is also in",
    spoil_name_in_no_shard: f"{SHARD}: tensor 'model.",
    spoil_unlisted_tensor: f"{SHARD}: 'extra.weight' is not there by",
    spoil_missing_tensor: "is missing",
    spoil_shape: "has shape (1, 2, 3), not",
    spoil_dtype: f"{SHARD}: 'model.",
}


@pytest.mark.parametrize("spoil", SPOILERS)
def test_refuses_in_one_line(tmp_path: Path, spoil) -> None:
    folder = write_folder(tmp_path / "model", tiny_model(), num_shards=3)
    open_checkpoint(folder)
    spoil(folder)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert SPOILERS[spoil] in message
    assert "\n" not in message


def test_a_loop_of_links(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tiny_model(), num_shards=3)
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to("loop.safetensors")
    (folder / "loop.safetensors").symlink_to(SHARD)
    with pytest.raises(CheckpointError, match=f"{SHARD}: cannot be read: .* symbolic links"):
        open_checkpoint(folder)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_model().raw_config))
    with pytest.raises(CheckpointError, match=r"has neither .* nor .*, and 0 other"):
        open_checkpoint(tmp_path)
