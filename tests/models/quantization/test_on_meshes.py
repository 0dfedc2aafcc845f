"""Quantised models spread over devices, in a process that has several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.long
def test_devices_share_the_matrices_and_compute_the_same() -> None:
    command = [sys.executable, "-m", "tests.models.quantization.mesh_child"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    lines = [line.split() for line in child.stdout.splitlines()]
    assert {(scheme, preset) for scheme, preset, *_ in lines} == {
        (scheme, preset) for scheme in ("int8", "fp8", "int4") for preset in ("megatron", "fsdp")
    }
    for _, _, num_devices, error, share in lines:
        assert float(error) < 1e-4
        assert float(share) < 1.1 / int(num_devices)
