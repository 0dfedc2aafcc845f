"""Why a request or an operation is not served."""

from __future__ import annotations


class EngineError(Exception):
    """Base of what `generate` raises; `code` is OpenAI's machine-readable code or None."""

    status = 500
    kind = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(EngineError):
    """The request can never be served as it is."""

    status = 400
    kind = "invalid_request_error"


class InvalidGrammar(InvalidRequest):
    """The grammar cannot be served as it is; the message is for its author."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_grammar")


class Busy(EngineError):
    """It cannot be done while requests run or wait; the same may succeed later."""

    status = 400
    kind = "invalid_request_error"


class OperationRefused(EngineError):
    """The operation cannot be carried out as it is; nothing has changed."""

    status = 400
    kind = "invalid_request_error"


class OperationFailed(EngineError):
    """The operation did not succeed: all is as before, but the KV cache is empty."""


class QueueFull(EngineError):
    status = 429
    kind = "rate_limit_error"


class Unavailable(EngineError):
    """The engine is starting, draining or gone; the same request may succeed later."""

    status = 503
    kind = "server_error"


class DeadlineExceeded(EngineError):
    """The request's own time limit passed before its answer was complete."""

    status = 504
    kind = "server_error"


class UnknownReplica(EngineError):
    status = 404
    kind = "invalid_request_error"
