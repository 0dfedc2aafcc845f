"""What happens around every handler: a request id, its key checked, one log line, and errors in one
shape."""

from __future__ import annotations

import logging
import re
import time
import uuid

from aiohttp import web
from aiohttp.typedefs import Handler

from jaxsgl.interface import EngineError
from server.connection import arrived_s, is_surplus, surplus_answer
from server.context import CONTEXT, REQUEST_ID, TENANT
from server.cors import add_cors, is_preflight, preflight_answer
from server.errors import error_response, from_http_exception, internal_error
from server.event_stream import ClientGone

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
"""Logged in place of a status when nobody was left to send one to."""

GPU_COUNT = "x-sglang-gpu-count"
"""Header of every answer: devices of the replicas that take requests now."""

_OPERATORS_PATHS = ("/health", "/ready", "/metrics")
_CLIENTS_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


@web.middleware
async def around_handler(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Name the request, answer for what its handler raises, log how it went."""
    request[REQUEST_ID] = _request_id(request)
    started = arrived_s(request)
    status = CLIENT_GONE
    try:
        response = await _handled(request, handler)
        status = response.status
        return response
    finally:
        level = logging.DEBUG if request.path in _OPERATORS_PATHS else logging.INFO
        _log(request, level, status, time.perf_counter() - started)


async def _handled(request: web.Request, handler: Handler) -> web.StreamResponse:
    context = request.app[CONTEXT]
    try:
        if is_preflight(request, context.config.cors_origin):
            return preflight_answer(request)
        if is_surplus(request):
            return surplus_answer()
        access = context.access.get(request.match_info.handler, "key")
        request[TENANT] = context.keys.tenant(access, request.headers)
        return await handler(request)
    except EngineError as error:
        context.metrics.error(error)
        return error_response(error)
    except web.HTTPException as error:
        return from_http_exception(error)
    except ClientGone:
        raise
    except Exception:
        logger.exception("A defect broke request %s", request[REQUEST_ID])
        context.metrics.error(internal_error())
        return error_response(internal_error())


def _log(request: web.Request, level: int, status: int, elapsed_s: float) -> None:
    if not logger.isEnabledFor(level):
        return
    path, request_id = request.rel_url.raw_path[:200], request[REQUEST_ID]
    fields = {
        "method": request.method,
        "path": path,
        "status": status,
        "seconds": round(elapsed_s, 6),
        "request_id": request_id,
    }
    words = (request.method, path, status, elapsed_s, request_id)
    logger.log(level, "%s %s %d %.3fs %s", *words, extra={"fields": fields, "event": "answered"})


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: a streamed response is sent before the middleware sees it."""
    response.headers[GPU_COUNT] = str(request.app[CONTEXT].engine.num_devices)
    response.headers["X-Request-Id"] = request.get(REQUEST_ID) or _request_id(request)
    response.headers["Server"] = "jaxsgl"
    add_cors(request, response, request.app[CONTEXT].config.cors_origin)


def _request_id(request: web.Request) -> str:
    """The client's own, if it is one that can stand in a header and a log line."""
    given = request.headers.get("X-Request-Id", "")
    return given if _CLIENTS_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
