"""Routes that change what is on the devices while the server runs, shaped as those of SGLang."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from jaxsgl.interface import (
    MEMORY_PARTS,
    EngineOperation,
    InvalidRequest,
    MemoryPart,
    ReleaseMemory,
    Reshard,
    ResumeMemory,
    Unavailable,
    UpdateWeights,
)
from server.context import CONTEXT
from server.json_body import read_json
from server.route import ENGINE_ERRORS, Route


class UpdateBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See `interface.UpdateWeights`."""

    model_path: str
    load_format: str | None = None
    weight_version: str | None = None


class MemoryBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tags: tuple[MemoryPart, ...] | None = None
    """All parts if None."""


class ReshardBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See `interface.Reshard`. Rules are a preset's name, pairs or an object; files stay with the
    command line."""

    mesh: str | None = None
    sharding_rules: str | dict[str, str | list[str]] | None = None


UPDATE_DECODER = msgspec.json.Decoder(UpdateBody)
MEMORY_DECODER = msgspec.json.Decoder(MemoryBody)
RESHARD_DECODER = msgspec.json.Decoder(ReshardBody)


class OperationReply(msgspec.Struct, frozen=True, kw_only=True):
    success: bool = True
    message: str
    weight_version: str
    released: tuple[MemoryPart, ...]
    mesh: str
    notes: tuple[str, ...]
    paused_s: float
    compiled_s: float | None


def operation_routes() -> list[Route]:
    return [
        _route("/update_weights_from_disk", update_weights, UPDATE_DECODER),
        _route("/release_memory_occupation", release_memory, MEMORY_DECODER),
        _route("/resume_memory_occupation", resume_memory, MEMORY_DECODER),
        _route("/reshard", reshard, RESHARD_DECODER),
    ]


def _route(path: str, handler: Handler, body: msgspec.json.Decoder[Any]) -> Route:
    return Route(
        method="POST",
        path=path,
        handler=handler,
        access="admin",
        body=body,
        answers={200: OperationReply},
        errors=ENGINE_ERRORS,
    )


async def update_weights(request: web.Request) -> web.Response:
    """200 once requests are answered with the new weights; 400 or 500 with the old ones serving."""
    body = await read_json(request, UPDATE_DECODER)
    update = UpdateWeights(
        model_path=body.model_path,
        load_format=body.load_format or "auto",
        weight_version=body.weight_version,
    )
    return await _operate(request, update, "the weights are updated")


async def release_memory(request: web.Request) -> web.Response:
    """200 once the memory is free. Requests wait until it is resumed."""
    operation = ReleaseMemory(parts=await _parts(request))
    return await _operate(request, operation, "the memory is released")


async def resume_memory(request: web.Request) -> web.Response:
    """200 once the memory is taken again."""
    operation = ResumeMemory(parts=await _parts(request))
    return await _operate(request, operation, "the memory is resumed")


async def reshard(request: web.Request) -> web.Response:
    """200 once steps run on the new mesh; 400 or 500 with the old one serving."""
    body = await read_json(request, RESHARD_DECODER)
    rules = body.sharding_rules
    if body.mesh is None and rules is None:
        raise InvalidRequest("give a mesh, sharding_rules, or both", param="mesh")
    if isinstance(rules, str) and rules.endswith(".toml"):
        raise InvalidRequest(
            "send the rules themselves, as an object, and not a file", param="sharding_rules"
        )
    operation = Reshard(mesh=body.mesh, sharding_rules=rules)
    return await _operate(request, operation, "the model is resharded")


async def _parts(request: web.Request) -> tuple[MemoryPart, ...]:
    body = await read_json(request, MEMORY_DECODER)
    return MEMORY_PARTS if body.tags is None else body.tags


async def _operate(request: web.Request, operation: EngineOperation, message: str) -> web.Response:
    engine = request.app[CONTEXT].engine
    if not engine.ready:
        raise Unavailable("The engine is starting or shutting down; try again soon")
    report = await engine.operate(operation)
    reply = OperationReply(
        message=message,
        weight_version=report.weight_version,
        released=report.released,
        mesh=report.mesh,
        notes=report.notes,
        paused_s=report.paused_s,
        compiled_s=report.compiled_s,
    )
    return web.Response(body=msgspec.json.encode(reply), content_type="application/json")
