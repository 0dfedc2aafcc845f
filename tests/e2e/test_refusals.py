"""What cannot be started is refused in one line, before anything heavy is done."""

import socket
import subprocess
from pathlib import Path

import pytest

from jaxsgl.loading.default_model import default_model_path
from tests.e2e.server_process import COMMAND, ROOT
from tests.loading.tiny_models import tiny_model, write_gguf


def refusal(*args: str) -> tuple[int, str]:
    """Exit code and standard error of a server that must not start."""
    ended = subprocess.run([*COMMAND, *args], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


def test_a_missing_model(tmp_path: Path):
    path = tmp_path / "none.gguf"
    code, line = refusal("--port", "0", "--model-path", str(path))
    assert code == 2
    assert line == (
        f"jaxsgl: {str(path)!r}: no such file or folder, and not in the local HuggingFace cache\n"
    )


@pytest.mark.parametrize("num_bytes", [100, 1_000_000, 50_000_000])
def test_a_truncated_model(tmp_path: Path, num_bytes: int):
    path = tmp_path / "short.gguf"
    with default_model_path().open("rb") as whole:
        path.write_bytes(whole.read(num_bytes))
    code, line = refusal("--port", "0", "--model-path", str(path))
    assert code == 2
    assert line.startswith(f"jaxsgl: {path}: ") and line.count("\n") == 1


def test_an_unknown_architecture(tmp_path: Path):
    path = write_gguf(tmp_path / "odd.gguf", tiny_model(), general__architecture="perceptron")
    code, line = refusal("--port", "0", "--model-path", str(path))
    assert code == 2
    known = "llama, qwen2, qwen3, qwen3moe, gemma2, gemma3, phi3, smollm3, deepseek2"
    assert line == f"jaxsgl: {path}: architecture 'perceptron' is unknown; known: {known}\n"


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refusal("--port", str(port), "--model-path", "/no/such/model")
    assert code == 2
    # Told before the model is even looked for.
    assert line == f"jaxsgl: port {port} on 127.0.0.1 is in use; choose another with --port\n"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (
            ["--port", "0", "--load-balancing-policy", "min-latency"],
            "--load-balancing-policy min-latency needs --enable-metrics",
        ),
        (["--port", "http"], "argument --port: invalid int value: 'http'"),
        (["--port", "0", "--mesh", "tp=zero"], "--mesh 'tp=zero' is not understood; "),
        (["--port", "0", "--context-length", "100000"], "--context-length 100000 is beyond the "),
    ],
)
def test_bad_settings(args: list[str], line: str):
    code, said = refusal(*args)
    assert code == 2
    assert said.splitlines()[-1].startswith(f"jaxsgl: {line}")
    assert "Traceback" not in said


def test_help_lists_every_flag():
    ended = subprocess.run([*COMMAND, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr == ""
    assert "--model-path" in ended.stdout and "--mesh" in ended.stdout
