"""Routes for whoever operates the server. Only `flush_cache` waits for the engine."""

from __future__ import annotations

import msgspec
from aiohttp import web

from jaxsgl import metrics
from server.context import CONTEXT
from server.route import ENGINE_ERRORS, Route


class StatusReply(msgspec.Struct, frozen=True):
    status: str


def admin_routes() -> list[Route]:
    probe = {200: StatusReply, 503: StatusReply}
    return [
        Route(method="GET", path="/health", handler=health, access="open", answers=probe),
        Route(method="GET", path="/ready", handler=ready, access="open", answers=probe),
        Route(method="GET", path="/metrics", handler=show_metrics, answers={200: bytes}),
        Route(
            method="POST",
            path="/flush_cache",
            handler=flush_cache,
            access="admin",
            answers={200: StatusReply},
            errors=ENGINE_ERRORS,
        ),
    ]


async def health(request: web.Request) -> web.Response:
    """200 while every part of the engine shows signs of life, however busy it is; else 503."""
    return _status(request.app[CONTEXT].engine.alive, "ok", "failed")


async def ready(request: web.Request) -> web.Response:
    """200 while a request sent now would be admitted; 503 while starting or draining."""
    return _status(request.app[CONTEXT].engine.ready, "ready", "not ready")


async def show_metrics(request: web.Request) -> web.Response:
    """What Prometheus scrapes."""
    exposition = request.app[CONTEXT].metrics.exposition()
    return web.Response(body=exposition, headers={"Content-Type": metrics.CONTENT_TYPE})


async def flush_cache(request: web.Request) -> web.Response:
    """200 once no cached prefix is left; 400 while a request runs or waits."""
    await request.app[CONTEXT].engine.flush_cache()
    return _status(True, "flushed", "")


def _status(good: bool, if_good: str, if_bad: str) -> web.Response:
    body = msgspec.json.encode(StatusReply(if_good if good else if_bad))
    return web.Response(body=body, status=200 if good else 503, content_type="application/json")
