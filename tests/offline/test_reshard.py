"""A model moves between meshes under load: no request is lost, no answer changes."""

import json
import subprocess
import sys

import pytest

from tests.offline.reshard_child import MOVES, NUM_TOKENS


@pytest.mark.long
def test_one_device_to_two_and_back_under_load():
    command = [sys.executable, "-m", "tests.offline.reshard_child"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert {len(answer) for answer in told["before"]} == {NUM_TOKENS}
    assert len({tuple(answer) for answer in told["before"]}) == len(told["before"])
    assert told["answers"]
    assert all(answers == told["before"] for answers in [*told["answers"], told["after"]])
    assert [mesh for mesh, _, _ in told["moves"]] == MOVES
    assert all(0 < paused_s < elapsed_s for _, paused_s, elapsed_s in told["moves"])
    assert told["recomputed"] > 0, "no request was running when the model moved"
    assert "the mesh needs 64 devices" in told["refused"]
    assert told["left"] == [0, 0, 0]
    assert told["mesh"] == "tp=1"
