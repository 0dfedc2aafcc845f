"""The folder of compiled programs, under what can happen to a folder. Damaged entries and folders
that cannot be written to: see `test_build`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runner.program_cache_child import NUM_PROGRAMS

ROOT = Path(__file__).parents[2]


def start(folder: Path, *limit: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.runner.program_cache_child", str(folder), *limit]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def outcome(child: subprocess.Popen[str]) -> tuple[str, int]:
    """Whether it computed what is right, and the complaints about the folder."""
    said, _ = child.communicate(timeout=300)
    assert child.returncode == 0
    right, complaints = said.split()
    return right, int(complaints)


@pytest.mark.long
def test_a_full_disk_only_costs_time_and_so_does_what_it_left(tmp_path: Path) -> None:
    right, complaints = outcome(start(tmp_path, "64"))
    assert right == "True" and complaints >= NUM_PROGRAMS
    left = [path for path in tmp_path.iterdir() if path.is_file()]
    assert left and all(path.stat().st_size <= 64 for path in left)
    right, complaints = outcome(start(tmp_path))
    assert right == "True" and complaints >= NUM_PROGRAMS


@pytest.mark.long
def test_two_that_start_at_once_share_a_folder(tmp_path: Path) -> None:
    children = [start(tmp_path), start(tmp_path)]
    assert [outcome(child)[0] for child in children] == ["True", "True"]
    assert outcome(start(tmp_path)) == ("True", 0)  # what they wrote is whole
