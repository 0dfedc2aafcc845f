"""Routes that tell what is served, and how busy it is."""

from __future__ import annotations

import dataclasses
import time
from importlib.metadata import version
from typing import Any

from aiohttp import web
from msgspec import Struct

from jaxsgl.config import EngineConfig
from jaxsgl.interface import EngineStats, ModelInfo, ReplicaReport
from server.context import CONTEXT, ready_engine
from server.replying import json_response
from server.route import Route


class ModelInfoReply(Struct, frozen=True, kw_only=True):
    model_path: str
    tokenizer_path: str
    is_generation: bool = True
    weight_version: str
    model: ModelInfo


class ServerInfoReply(Struct, frozen=True, kw_only=True):
    version: str
    uptime_s: float
    model: ModelInfo
    settings: dict[str, Any]
    """Of the engine, as they are named in a file for --config; null where the engine chooses."""
    stats: EngineStats
    num_devices: int
    """Of the replicas that take requests now."""


class Load(Struct, frozen=True, kw_only=True):
    """Of one replica; names as SGLang has them."""

    dp_rank: int
    state: str
    """See `interface.ReplicaReport`."""
    devices: tuple[str, ...]
    num_in_flight: int
    """Requests sent to it that have not ended; the other figures are as it reported last."""
    num_running_reqs: int
    num_waiting_reqs: int
    num_total_reqs: int
    num_used_tokens: int
    max_total_num_tokens: int
    token_usage: float
    cache_hit_rate: float
    """Of all prompt tokens since the start."""
    max_running_requests: int


class LoadsReply(Struct, frozen=True, kw_only=True):
    timestamp: float
    """Unix seconds."""
    version: str
    dp_rank_count: int
    loads: list[Load]


def info_routes() -> list[Route]:
    routes = (
        ("/get_model_info", model_info, ModelInfoReply),
        ("/model_info", model_info, ModelInfoReply),
        ("/get_server_info", server_info, ServerInfoReply),
        ("/server_info", server_info, ServerInfoReply),
        ("/v1/loads", loads, LoadsReply),
    )
    return [
        Route(method="GET", path=path, handler=handler, answers={200: reply}, errors=(503,))
        for path, handler, reply in routes
    ]


async def model_info(request: web.Request) -> web.Response:
    """What is served."""
    engine = ready_engine(request)
    settings = request.app[CONTEXT].engine_config or EngineConfig()
    path = settings.model_path or engine.model.name
    reply = ModelInfoReply(
        model_path=path,
        tokenizer_path=settings.tokenizer_path or path,
        weight_version=engine.model.weight_version,
        model=engine.model,
    )
    return json_response(reply)


async def server_info(request: web.Request) -> web.Response:
    """What is served, with which settings, and how it is doing."""
    engine = ready_engine(request)
    context = request.app[CONTEXT]
    reply = ServerInfoReply(
        version=version("jaxsgl"),
        uptime_s=round(time.time() - context.started_at, 3),
        model=engine.model,
        settings=dataclasses.asdict(context.engine_config or EngineConfig()),
        stats=engine.stats(),
        num_devices=engine.num_devices,
    )
    return json_response(reply)


async def loads(request: web.Request) -> web.Response:
    """How busy each replica was when it reported last, at most a second or so ago."""
    engine = ready_engine(request)
    page_size = (request.app[CONTEXT].engine_config or EngineConfig()).page_size
    each = [_load(replica, page_size) for replica in engine.replicas()]
    reply = LoadsReply(
        timestamp=time.time(), version=version("jaxsgl"), dp_rank_count=len(each), loads=each
    )
    return json_response(reply)


def _load(replica: ReplicaReport, page_size: int) -> Load:
    stats = replica.stats
    num_used = stats.pages_total - stats.pages_free - stats.pages_cached
    return Load(
        dp_rank=replica.replica_id,
        state=replica.state,
        devices=replica.devices,
        num_in_flight=replica.num_in_flight,
        num_running_reqs=stats.num_running,
        num_waiting_reqs=stats.num_waiting,
        num_total_reqs=stats.num_running + stats.num_waiting,
        num_used_tokens=num_used * page_size,
        max_total_num_tokens=stats.pages_total * page_size,
        token_usage=round(num_used / max(1, stats.pages_total), 6),
        cache_hit_rate=round(stats.cached_tokens / max(1, stats.prompt_tokens), 6),
        max_running_requests=stats.slots_total,
    )
