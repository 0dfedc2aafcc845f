"""Every program compiles for devices that are not there, and treats their memory as it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.aot.compile_child import largest_copy

MIB = 2**20
MODELS = ("llama", "experts")
LARGE = "forward_mixed_4096x64"
TARGETS = [
    *((target, tp, "none", "llama") for target in ("h100", "v5e", "v6e") for tp in (1, 2)),
    *(("h100", 1, scheme, name) for name in MODELS for scheme in ("int8", "fp8", "int4")),
    ("h100", 2, "int4", "llama"),
    *((target, tp, "none", "experts") for target, tp in (("h100", 1), ("h100", 2), ("v5e", 1))),
]
PAGES = "bf16[4097,16,4,128]{3,2,1,0:T(8,128)(2,1)"
COPY = f"  %copy.1 = {PAGES}}} copy(%param.7)"
FETCH = f"  %copy-start.1 = ({PAGES}S(1)}}, {PAGES}}}, u32[]{{:S(2)}}) copy-start(%param.7)"

pytestmark = pytest.mark.aot


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: "{}-tp{}-{}-{}".format(*target))
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    target, tp, scheme, model = request.param
    folder = tmp_path_factory.mktemp(target)
    command = [
        sys.executable,
        "-m",
        "tests.aot.compile_child",
        target,
        str(tp),
        str(folder),
        scheme,
        model,
    ]
    env = os.environ | {"XLA_FLAGS": f"--xla_dump_to={folder}"}
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=800, env=env
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    what = {"target": target, "tp": tp, "scheme": scheme, "model": model}
    return json.loads(ended.stdout) | what


def of_kind(compiled: dict[str, Any], kind: str) -> dict[str, Any]:
    """Those that are not the model's are compiled with one of the models."""
    found = {name: told for name, told in compiled["programs"].items() if told["kind"] == kind}
    is_plain = (compiled["scheme"], compiled["model"]) == ("none", "llama")
    assert bool(found) == (kind in ("forward", "chain") or is_plain)
    return found


def test_pages_are_written_in_place(compiled: dict[str, Any]) -> None:
    for name, told in of_kind(compiled, "forward").items():
        assert told["in_place"] == compiled["kv_bytes"], name
    for name, told in of_kind(compiled, "chain").items():
        assert told["in_place"] > compiled["kv_bytes"], name  # what slots drew last, too


def test_nothing_large_is_copied(compiled: dict[str, Any]) -> None:
    for name, told in compiled["programs"].items():
        num_bytes, instruction = told["largest_copy"]
        assert num_bytes <= 16 * MIB, f"{name}: {instruction}"


def test_nothing_is_computed_twice_to_save_memory(compiled: dict[str, Any]) -> None:
    if compiled["target"] != "h100":
        pytest.skip("there are few pages on a TPU here")
    for name, told in of_kind(compiled, "forward").items():
        assert told["computed_twice"] <= 1, name


def test_no_more_than_logits_is_gathered(compiled: dict[str, Any]) -> None:
    """Neither embedding nor head, which the partitioner alone would gather at some sizes."""
    for name, told in of_kind(compiled, "forward").items():
        gathered = told["gathered"]
        assert gathered <= compiled["logits_bytes"] and (gathered > 0) == (compiled["tp"] > 1), name


def test_the_kernels_of_the_device_are_used(compiled: dict[str, Any]) -> None:
    for name, told in of_kind(compiled, "forward").items():
        assert told["kernels"] > 0, name


def test_a_step_is_one_command_buffer(compiled: dict[str, Any]) -> None:
    """And so is the draw after it, and a round of a chain with its draws. Only a large step of one
    GPU is not."""
    if compiled["target"] != "h100":
        pytest.skip("there are none on a TPU")
    for name, told in (of_kind(compiled, "forward") | of_kind(compiled, "draw")).items():
        if told.get("is_graph", True):
            assert told["thunks"] == ["kCommandBuffer"], name
        else:
            assert len(told["thunks"]) > 1 and "kCommandBuffer" not in told["thunks"], name
    if compiled["scheme"] == "none":  # large enough for that with so few layers
        assert compiled["programs"][LARGE]["is_graph"] == (compiled["tp"] > 1)
    for name, told in of_kind(compiled, "chain").items():
        assert told["thunks"] == ["kCommandBuffer", "kWhile"], name
        assert told["rounds"] == ["kCommandBuffer"], name


def test_no_matrix_is_written_out_in_memory(compiled: dict[str, Any]) -> None:
    """Neither widened, where it is quantised, nor turned for the loop of a chain, nor copied by
    whatever name. A step of one token per row needs little memory otherwise."""
    smallest = 16 * MIB
    for name, told in of_kind(compiled, "forward").items():
        if "decode" in name:
            assert told["temporary"] < smallest, name
    for name, told in of_kind(compiled, "chain").items():
        assert told["temporary"] < smallest + compiled["logits_bytes"], name


def test_a_large_copy_is_noticed() -> None:
    """The control."""
    num_bytes = 4097 * 16 * 4 * 128 * 2
    turned = COPY.replace("} copy", "S(1)} copy")
    for copy in (COPY, turned, FETCH.replace("S(1)", "")):
        assert largest_copy(f"{copy}\n{FETCH}") == (num_bytes, copy.strip())
    assert largest_copy(FETCH) == (0, "")
    assert largest_copy(COPY.replace("copy(", "fusion(")) == (0, "")
