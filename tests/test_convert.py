"""The converter's command line, and that it leaves all or nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jaxsgl.config import ConfigError
from jaxsgl.convert import convert, main
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.orbax_checkpoint import OrbaxCheckpoint
from tests.loading.tiny_models import tiny_model, write_folder
from tests.models.tiny import RandomModel, tiny_config

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "jaxsgl.convert")
STOPS_HALF_WAY = """
import os, signal, sys, threading, time
from pathlib import Path
from jaxsgl.convert import main

def stop_when_weights_are_written() -> None:
    out = Path(sys.argv[2])
    while not list(out.parent.glob(f".{out.name}.*.partial/weights*")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGSTOP)

threading.Thread(target=stop_when_weights_are_written, daemon=True).start()
sys.exit(main())
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "Tiny-1M", tiny_model())


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], cwd=ROOT, capture_output=True, text=True, timeout=240)


def neighbours(path: Path) -> set[str]:
    return {neighbour.name for neighbour in path.parent.iterdir()} - {"Tiny-1M"}


def test_converts(source: Path) -> None:
    out = source.with_name("out")
    ended = run(source, out, "--dtype", "bfloat16")
    assert (ended.returncode, ended.stdout) == (0, f"{out}: Tiny-1M in bfloat16\n")
    assert "converting weights" in ended.stderr and "Traceback" not in ended.stderr
    assert neighbours(out) == {"out"}
    assert isinstance(open_checkpoint(out), OrbaxCheckpoint)
    assert json.loads((out / "jaxsgl.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("{source}",), "the following arguments are required: OUT"),
        (("{source}", "{out}", "--dtype", "int8"), "argument --dtype: invalid choice: 'int8'"),
        (("/no/such/model", "{out}"), "'/no/such/model': no such file or folder"),
    ],
    ids=["no OUT", "no such type", "no such model"],
)
def test_refuses_in_one_line(
    source: Path, args: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"source": source, "out": source.with_name("out")}
    assert main([arg.format(**names) for arg in args]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"jaxsgl: {line.format(**names)}")
    assert said.err.count("\n") == 1
    assert neighbours(source) == set()


def test_a_converted_model_is_not_converted_again(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And an empty folder is as good as none."""
    out = source.with_name("out")
    out.mkdir()
    convert(open_checkpoint(source), out, "float32")
    assert isinstance(open_checkpoint(out), OrbaxCheckpoint)
    capsys.readouterr()
    assert main([str(out), str(source.with_name("again"))]) == 2
    assert capsys.readouterr().err == f"jaxsgl: {out} is an Orbax checkpoint already\n"
    assert neighbours(out) == {"out"}


@pytest.mark.parametrize("place", ["Tiny-1M", "Tiny-1M/config.json"])
def test_nothing_is_overwritten(source: Path, place: str) -> None:
    before = sorted(source.iterdir())
    with pytest.raises(ConfigError, match=f"{place} exists and is no empty folder"):
        convert(open_checkpoint(source), source.parent / place, "float32")
    assert sorted(source.iterdir()) == before
    assert neighbours(source) == set()


def test_a_place_that_cannot_be_written(source: Path) -> None:
    ended = run(source, source / "config.json" / "out")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("jaxsgl: cannot write: ") and ended.stderr.count("\n") == 1


class Broken(RandomModel):
    """Fails when most has been read."""

    tokenizer_source = None

    def tensor(self, name: str):
        if name == "model.norm.weight":
            raise CheckpointError("model.safetensors: 'model.norm.weight' is cut short")
        return super().tensor(name)


def test_a_source_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cut short"):
        convert(Broken(tiny_config()), tmp_path / "out", "float32")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_on_the_disk_are_not_begun(tmp_path: Path) -> None:
    config = tiny_config(num_layers=1024, hidden_size=2**20, mlp_size=2**20)
    with pytest.raises(OSError, match=r"the weights need \d+\.\d\d GB, \d+\.\d\d GB are free"):
        convert(Broken(config), tmp_path / "out", "float32")
    assert list(tmp_path.iterdir()) == []


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    class Racing(RandomModel):
        tokenizer_source = None

        def tensor(self, name: str):
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / "file").touch()
            return super().tensor(name)

    with pytest.raises(OSError, match="out"):
        convert(Racing(tiny_config()), tmp_path / "out", "float32")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]
    with pytest.raises(ConfigError, match="no empty folder"):
        convert(Racing(tiny_config()), tmp_path / "out", "float32")


def exit_code_when_killed(source: Path, out: Path, number: signal.Signals) -> int:
    """Of a conversion that gets a signal when it has just begun to write weights."""
    # Shells start what runs in the background with SIGINT ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(
        [sys.executable, "-c", STOPS_HALF_WAY, source, out, "--load-format", "dummy"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    signal.signal(signal.SIGINT, before)
    try:
        process = psutil.Process(child.pid)
        while child.poll() is None and process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        child.send_signal(number)
        child.send_signal(signal.SIGCONT)
        return child.wait(120)
    finally:
        child.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_half_way_there_is_no_folder(tmp_path: Path, number: signal.Signals) -> None:
    """While the weights, a third of a gigabyte, are being written."""
    config = tiny_model().raw_config | {"vocab_size": 300_000, "hidden_size": 256}
    source = tmp_path / "Tiny-1M"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    code = exit_code_when_killed(source, out, number)
    assert code == (130 if number == signal.SIGINT else -number)
    assert not out.exists()
    left = neighbours(out)
    assert left == set() if number == signal.SIGINT else all(name[0] == "." for name in left)
