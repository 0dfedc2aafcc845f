"""Changing what is on the devices over HTTP."""

from __future__ import annotations

import pytest

from jaxsgl.interface import (
    OperationFailed,
    OperationRefused,
    ReleaseMemory,
    Reshard,
    ResumeMemory,
    UpdateWeights,
)
from tests.server.conftest import Served

UPDATE, RELEASE, RESUME, RESHARD = (
    "/update_weights_from_disk",
    "/release_memory_occupation",
    "/resume_memory_occupation",
    "/reshard",
)


async def test_an_update_is_passed_on(served: Served) -> None:
    body = {"model_path": "/m", "load_format": "gguf", "weight_version": "v2"}
    status, reply = await served.post(UPDATE, body)
    assert (status, reply["success"], reply["weight_version"]) == (200, True, "v2")
    assert await served.post(UPDATE, {"model_path": "/m"}) == (200, reply)
    assert served.engine.operations == [
        UpdateWeights(model_path="/m", load_format="gguf", weight_version="v2"),
        UpdateWeights(model_path="/m"),
    ]


async def test_memory_is_released_and_resumed_in_parts(served: Served) -> None:
    status, reply = await served.post(RELEASE, {"tags": ["weights"]})
    assert (status, reply["released"]) == (200, ["weights"])
    assert (await served.post(RESUME, {}))[0] == 200
    assert (await served.post(RELEASE, {}))[0] == 200
    assert served.engine.operations == [
        ReleaseMemory(parts=("weights",)),
        ResumeMemory(),
        ReleaseMemory(),
    ]


async def test_a_model_is_spread_otherwise(served: Served) -> None:
    status, reply = await served.post(RESHARD, {"mesh": "tp=2", "sharding_rules": "fsdp"})
    assert (status, reply["mesh"], reply["notes"]) == (200, "tp=2", [])
    assert (reply["paused_s"], reply["compiled_s"]) == (1.5, None)
    rules = {"mlp": ["fsdp", "tp"], "vocab": "tp"}
    assert (await served.post(RESHARD, {"sharding_rules": rules}))[0] == 200
    assert served.engine.operations == [
        Reshard(mesh="tp=2", sharding_rules="fsdp"),
        Reshard(sharding_rules=rules),
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "give a mesh, sharding_rules, or both"),
        ({"sharding_rules": "/etc/mine.toml"}, "send the rules themselves"),
    ],
)
async def test_a_spread_of_nothing_is_refused(
    served: Served, body: dict[str, str], message: str
) -> None:
    status, reply = await served.post(RESHARD, body)
    assert status == 400 and message in reply["error"]["message"]
    assert served.engine.operations == []


@pytest.mark.parametrize(
    ("error", "status"), [(OperationRefused("no such file"), 400), (OperationFailed("torn"), 500)]
)
async def test_what_comes_to_nothing(
    served: Served, error: OperationRefused | OperationFailed, status: int
) -> None:
    served.engine.refusal = error
    found, body = await served.post(UPDATE, {"model_path": "/m"})
    assert (found, body["error"]["message"]) == (status, error.message)


@pytest.mark.parametrize(
    ("path", "body"),
    [(UPDATE, {}), (UPDATE, {"model_path": "/m", "x": 1}), (RELEASE, {"tags": ["brain"]})],
)
async def test_bodies_are_checked(served: Served, path: str, body: dict[str, object]) -> None:
    assert (await served.post(path, body))[0] == 400
    assert served.engine.operations == []


async def test_nothing_is_changed_while_starting(served: Served) -> None:
    served.engine.ready = False
    assert (await served.post(RELEASE, {}))[0] == 503
