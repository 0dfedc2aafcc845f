"""A converted model speaks as its source does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxsgl.loading.default_model import default_model_path
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.gguf_file import read_gguf_header
from jaxsgl.loading.orbax_tokenizer import METADATA_FILE, read_tokenizer, write_tokenizer
from jaxsgl.tokenizer import Tokenizer, load_tokenizer
from tests.tokenizer.smollm2 import smollm2

STRINGS = json.loads(
    (Path(__file__).parents[1] / "goldens/tokenizer_strings.json").read_text(encoding="utf-8")
)
CHAT = [{"role": "user", "content": "Is <|im_end|> the end?"}]


def assert_same(one: Tokenizer, other: Tokenizer) -> None:
    assert [one.encode(text) for text in STRINGS] == [other.encode(text) for text in STRINGS]
    assert one.encode_chat(CHAT) == other.encode_chat(CHAT)
    assert one.token_bytes == other.token_bytes
    assert one.special_token_texts == other.special_token_texts
    assert (one.bos_token_id, one.eos_token_ids) == (other.bos_token_id, other.eos_token_ids)


def test_the_metadata_of_a_gguf_file(tmp_path: Path) -> None:
    metadata = read_gguf_header(default_model_path()).metadata
    write_tokenizer(metadata, tmp_path / "tokenizer")
    source = read_tokenizer(tmp_path / "tokenizer")
    assert source is not None
    assert_same(load_tokenizer(source), smollm2())


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    """Two tokens end an answer, one of them by generation_config.json alone."""
    folder = tmp_path / "source"
    folder.mkdir()
    settings: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        "generation_config.json": {"eos_token_id": [0, 2]},
        "config.json": {"model_type": "llama"},
    }
    for name, content in settings.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    smollm2()._backend.save(str(folder / "tokenizer.json"))
    (folder / "model.safetensors").write_bytes(b"large")

    write_tokenizer(folder, tmp_path / "tokenizer")
    for path in list(folder.iterdir()):
        path.rename(tmp_path / path.name)  # Nothing may be read from there any more.
    source = read_tokenizer(tmp_path / "tokenizer")
    assert source == tmp_path / "tokenizer"
    assert not (tmp_path / "tokenizer" / "model.safetensors").exists()
    kept, original = load_tokenizer(source), load_tokenizer(tmp_path)
    assert kept.eos_token_ids == (2, 0)
    assert_same(kept, original)


@pytest.mark.parametrize("source", ["nothing", "folder without a tokenizer"])
def test_no_tokenizer(tmp_path: Path, source: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_tokenizer(None if source == "nothing" else tmp_path, tmp_path / "tokenizer")
    assert read_tokenizer(tmp_path / "tokenizer") is None
    assert not (tmp_path / "tokenizer").exists()


def test_damaged_metadata_is_one_line(tmp_path: Path) -> None:
    (tmp_path / METADATA_FILE).write_text("{")
    with pytest.raises(CheckpointError, match=METADATA_FILE) as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
