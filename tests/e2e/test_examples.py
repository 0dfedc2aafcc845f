"""The programs of examples/server/, as a user runs them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.e2e.server_process import ROOT, ServerProcess

FOLDER = ROOT / "examples/server"
SAYS = {
    "chat.py": "capital of France is Paris",
    "stream.py": r"(?s).+\(\d+ tokens\)",
    "batch.py": r"(?s)France:' Paris.*\nPortugal:'.*', log-probability -\d",
    "tools.py": r"(?s)temperature\(\{'city': '\w+'\}\) = \d+ degrees\n.*\w",
    "embeddings.py": r"0\.\d+ A kitten .*\n0\.\d+ Taxes",
    "requests.sh": r'(?s)"status":"ok".*"text":" Paris.*"tokens":\[\d.*"settings":\{',
}


def test_every_example_is_run() -> None:
    assert sorted(SAYS) == sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", SAYS)
def test_example(server: ServerProcess, name: str) -> None:
    program = "sh" if name.endswith(".sh") else sys.executable
    run = subprocess.run(
        [program, str(FOLDER / name), server.url], capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(SAYS[name], run.stdout), run.stdout
