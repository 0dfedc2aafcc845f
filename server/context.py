"""What every handler may reach through the application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler

from jaxsgl.config import EngineConfig, ServerConfig
from jaxsgl.interface import ServedEngine, Unavailable
from jaxsgl.metrics import Metrics
from server.access import Keys
from server.route import Access


@dataclass(frozen=True, slots=True)
class ServerContext:
    engine: ServedEngine
    config: ServerConfig
    metrics: Metrics
    keys: Keys
    access: Mapping[Handler, Access]
    """Whom the routes are for; a path that has none is like one for holders of a key."""
    started_at: int
    """Unix seconds; the `created` of the served model."""
    engine_config: EngineConfig | None = None
    """What the engine was started with, to be shown."""


CONTEXT = web.AppKey("context", ServerContext)
REQUEST_ID = web.RequestKey("request_id", str)
"""Set on every request that reached the middleware; echoed as `x-request-id`."""
TENANT = web.RequestKey("tenant", str)
"""Set on every request that reached a handler: whose cached prefixes it may use."""


def ready_engine(request: web.Request) -> ServedEngine:
    """Raises Unavailable while no request would be admitted. Only then is the model known."""
    engine = request.app[CONTEXT].engine
    if not engine.ready:
        raise Unavailable("The engine is starting or shutting down; try again soon")
    return engine
