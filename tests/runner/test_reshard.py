"""A runner moves between meshes, and answers everywhere what it answered before."""

import json
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def told():
    command = [sys.executable, "-m", "tests.runner.reshard_child"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_answers_stay_the_same_on_every_mesh(told):
    meshes = [mesh for mesh, _, _ in told["moved"]]
    assert meshes == ["tp=4", "fsdp=2,tp=2", "tp=1"]
    assert len(set(told["before"])) > 1
    for mesh, _, tokens in told["moved"]:
        assert tokens == told["before"], mesh


def test_notes_are_those_of_the_new_mesh(told):
    notes = [notes for _, notes, _ in told["moved"]]
    assert notes == [["each of 2 kv heads repeated 2 times"], [], []]


def test_nothing_is_left_behind(told):
    assert told["bytes_after"] == told["bytes"] == told["bytes_at_last"]
    assert told["recompiles"] == 0


def test_what_cannot_be_is_refused_in_one_line(told):
    twice, many, unknown, axis, size = told["refused"]
    assert "write it like tp=2" in twice
    assert "the mesh needs 64 devices" in many
    assert "'zero' are not known" in unknown
    assert "maps mlp to 'fsdp'; the mesh has tp=1" in axis
    assert "mlp: 3 devices do not divide 128" in size


def test_a_move_tells_what_took_how_long(told):
    late_s, early_s, lines = told["late"]
    assert late_s > 0 and early_s is None
    parts = (
        r"moving weights [\d.]+ s, allocating pages [\d.]+ s, running every program once [\d.]+ s"
    )
    assert re.fullmatch(rf"the model is on tp=2 now: compiling [\d.]+ s, {parts}", lines[0])
    assert re.fullmatch(rf"the model is on tp=1 now: {parts}", lines[1])


def test_a_move_that_fails_midway_is_undone(told):
    assert told["failed"] == "the model could not be moved: MemoryError: no room"
    assert told["after"] == told["before"]
