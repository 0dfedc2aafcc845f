"""Cross-origin requests: which web pages may read answers. Fetch standard, section 3.2 (CORS)."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from aiohttp.hdrs import (
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD,
    ORIGIN,
    VARY,
)

MAX_AGE_S = 600
"""Browsers may remember the answer to a preflight for this long."""
_EXPOSED = "X-Request-Id, Retry-After, X-Sglang-Gpu-Count"


def is_preflight(request: web.Request, origins: Sequence[str]) -> bool:
    """Whether a browser asks what it may send; keys are never sent along with that."""
    return (
        bool(origins)
        and request.method == "OPTIONS"
        and ORIGIN in request.headers
        and ACCESS_CONTROL_REQUEST_METHOD in request.headers
    )


def preflight_answer(request: web.Request) -> web.Response:
    """To a page of an origin that is not allowed it says nothing, as `add_cors` adds nothing."""
    return web.Response(status=204)


def add_cors(request: web.Request, response: web.StreamResponse, origins: Sequence[str]) -> None:
    """Let pages of the allowed origins read the answer; "*" allows all."""
    if not origins:
        return
    response.headers.add(VARY, ORIGIN)
    origin = request.headers.get(ORIGIN)
    if origin is None or not ("*" in origins or origin in origins):
        return
    response.headers[ACCESS_CONTROL_ALLOW_ORIGIN] = "*" if "*" in origins else origin
    response.headers[ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
    if is_preflight(request, origins):
        asked = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS)
        response.headers[ACCESS_CONTROL_ALLOW_METHODS] = "GET, POST, DELETE"
        response.headers[ACCESS_CONTROL_ALLOW_HEADERS] = asked or "Authorization, Content-Type"
        response.headers[ACCESS_CONTROL_MAX_AGE] = str(MAX_AGE_S)
