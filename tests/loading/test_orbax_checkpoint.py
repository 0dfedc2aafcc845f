"""Converted folders as checkpoints: what is in them, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxsgl.convert import convert
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.locate import locate_model
from jaxsgl.loading.orbax_checkpoint import FORMAT_VERSION, MAX_CHECKED_BYTES, OrbaxCheckpoint
from jaxsgl.models.llama import Llama
from jaxsgl.models.sharding import resolve_layout
from tests.loading.tiny_models import TinyModel, tiny_model, write_folder
from tests.models.tiny import one_device_mesh


def restore(folder: Path) -> None:
    checkpoint = open_checkpoint(folder, "orbax")
    assert isinstance(checkpoint, OrbaxCheckpoint)
    layout = resolve_layout(checkpoint.config, one_device_mesh())
    checkpoint.restore(Llama, layout, jnp.float32, lambda done, total: None)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of the weights is too large to be known by its content."""
    model = tiny_model()
    wide = model.raw_config | {"vocab_size": MAX_CHECKED_BYTES // 64 // 4 + 128}
    source = write_folder(tmp_path_factory.mktemp("tiny") / "Tiny-1M", TinyModel(wide, {}))
    folder = source.with_name("converted")
    convert(open_checkpoint(source, "dummy"), folder, "float32")
    return folder


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    """To be damaged."""
    return Path(shutil.copytree(converted, tmp_path / "copy"))


def test_is_found_and_recognised(converted: Path) -> None:
    checkpoint = open_checkpoint(locate_model(str(converted)))
    assert isinstance(checkpoint, OrbaxCheckpoint)
    assert checkpoint.config.name == "Tiny-1M"
    assert checkpoint.tokenizer_source is None
    restore(converted)


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import jaxsgl.serve; open_checkpoint(path)", "jax flax orbax tensorstore"),
        ("import jaxsgl.engine, jaxsgl.offline.engine, jaxsgl.runner.build", "orbax tensorstore"),
    ],
    ids=["front", "replica"],
)
def test_orbax_is_imported_by_no_one_else(converted: Path, code: str, unwanted: str) -> None:
    """The front opens converted models without jax; replicas of other formats need no Orbax."""
    program = f"""if True:
        import sys
        from pathlib import Path
        from jaxsgl.loading.checkpoint import open_checkpoint
        path = Path(sys.argv[1])
        {code}
        sys.exit(str(sorted(set({unwanted.split()}) & sys.modules.keys())))"""
    child = subprocess.run(
        [sys.executable, "-c", program, str(converted)], capture_output=True, text=True, timeout=240
    )
    assert child.stderr.strip() == "[]"


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_llama3_rope", "tiny_qwen2"])
def test_keeps_the_configuration(tmp_path: Path, name: str) -> None:
    model = tiny_model(name)
    source = open_checkpoint(write_folder(tmp_path / "Tiny-1M", model))
    convert(source, tmp_path / "out", "bfloat16")
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.config == dataclasses.replace(model.config, name="Tiny-1M")


def weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "weights").rglob("*") if path.is_file())


def assert_refused(folder: Path, fault: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        restore(folder)
    assert str(caught.value).startswith(f"{folder}")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_file_must_be_there_and_whole(folder: Path) -> None:
    files = weight_files(folder)
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert_refused(folder, f"{path}: has {len(content) // 2} bytes, not {len(content)}")
        path.unlink()
        assert_refused(folder, f"{path}: cannot be read: No such file")
        path.write_bytes(content)
    restore(folder)


def test_a_changed_byte_is_noticed_where_it_would_mislead(folder: Path) -> None:
    files = weight_files(folder)
    small = [path for path in files if path.stat().st_size <= MAX_CHECKED_BYTES]
    assert len(files) - len(small) == 1  # The embedding.
    for path in small:
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert_refused(folder, f"{path}: is damaged")
        path.write_bytes(content)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "jaxsgl.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another version": (
        lambda m: m.update(format_version=1),
        f"format_version is 1; known: {FORMAT_VERSION}",
    ),
    "no version": (
        lambda m: m.pop("format_version"),
        f"format_version is None; known: {FORMAT_VERSION}",
    ),
    "no files": (lambda m: m.pop("weight_files"), "missing required field `weight_files`"),
    "more than known": (lambda m: m.update(extra=1), "unknown field `extra`"),
    "more about the model": (
        lambda m: m["config"].update(sliding_window=64),
        "config has 'sliding_window', which is unknown",
    ),
    "less about the model": (lambda m: m["config"].pop("vocab_size"), "field `vocab_size`"),
    "size in words": (lambda m: m["config"].update(num_layers="2"), "Expected `int`, got `str`"),
    "impossible size": (lambda m: m["config"].update(num_layers=0), "num_layers is 0"),
    "unknown family": (
        lambda m: m["config"].update(architecture="mamba"),
        "architecture 'mamba' is unknown; known: llama, mistral",
    ),
    "another width": (
        lambda m: m["config"].update(mlp_size=128),
        "'layers.0.feed_forward.down' has shape (64, 96), not (64, 128)",
    ),
    "more layers": (lambda m: m["config"].update(num_layers=3), "tensor 'layers.2."),
    "fewer layers": (
        lambda m: m["config"].update(num_layers=1),
        "'norm_scales' has shape (5, 64), not (3, 64)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_manifest_that_fits_neither_us_nor_the_weights(folder: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    change_manifest(folder, change)
    assert_refused(folder, message)


@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_a_manifest_that_is_no_object(folder: Path, content: bytes) -> None:
    (folder / "jaxsgl.json").write_bytes(content)
    assert_refused(folder, "jaxsgl.json: is not a JSON object")


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    assert_refused(tmp_path, "jaxsgl.json: cannot be read: No such file")


def test_weights_that_orbax_cannot_read(folder: Path) -> None:
    """All files are as written, but the list of weights is not Orbax's."""
    for path in weight_files(folder):
        path.unlink()
    change_manifest(folder, lambda manifest: manifest.update(weight_files={}))
    assert_refused(folder, "weights: cannot read the list of weights: ")
