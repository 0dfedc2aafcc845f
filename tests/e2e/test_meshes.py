"""A model spread over two or four host devices draws the tokens it draws on one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.e2e.server_process import ROOT
from tests.e2e.test_same_tokens import GOLDENS

pytestmark = pytest.mark.long


def child(name: str) -> dict[str, list[list[int]]]:
    """By size of the mesh, one answer per prompt."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.e2e.mesh_child", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_smollm2():
    """Nine query and three kv heads, which no such mesh divides: attention stays whole."""
    expected = [golden["output_ids"] for golden in GOLDENS[:8]]
    assert {len(answer) for answer in expected} == {32}
    assert child("smollm2") == {"1": expected, "2": expected, "4": expected}


def test_a_toy_with_64_heads():
    """64 query and eight kv heads, which every such mesh divides."""
    answers = child("toy")
    one, control = answers["1"], answers.pop("control")
    assert len({tuple(answer) for answer in one}) == len(one) == 8
    assert answers == {"1": one, "2": one, "4": one}
    assert control != one
