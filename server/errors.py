"""Errors as HTTP sees them: OpenAI's nested body, whatever went wrong."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web

from jaxsgl.interface import EngineError, InvalidRequest

MAX_MESSAGE_LEN = 500
RETRY_AFTER_S = 1
"""Told to clients that were refused for want of room."""


class RequestRefused(InvalidRequest):
    """A request that HTTP itself refuses, with the status that says why."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """Of every answer that is an error, whatever the route."""

    error: ErrorDetail


def error_body(error: EngineError) -> bytes:
    """JSON of `{"error": {"message", "type", "param", "code"}}`, the message cut if very long."""
    return msgspec.json.encode(ErrorBody(error_detail(error)))


def error_detail(error: EngineError) -> ErrorDetail:
    return ErrorDetail(error.message[:MAX_MESSAGE_LEN], error.kind, error.param, error.code)


def error_response(
    error: EngineError, body: Callable[[EngineError], bytes] = error_body
) -> web.Response:
    response = web.Response(body=body(error), status=error.status, content_type="application/json")
    if error.status in (429, 503):
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    if error.status == 408:
        response.force_close()
    return response


def internal_error() -> EngineError:
    """What a client is told of a defect: nothing about it."""
    return EngineError("Internal server error", code="internal_error")


def from_http_exception(error: web.HTTPException) -> web.Response:
    """The same status and headers as `error`, with a JSON body in place of its text."""
    refused = RequestRefused(error.status, _HTTP_MESSAGES.get(error.status, error.reason))
    response = error_response(refused)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


_HTTP_MESSAGES = {
    404: "No such route",
    405: "This route does not take that method",
}
