"""Programs on a server: jaxsgl's own or any that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import msgspec

from jaxsgl.interface import (
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    QueueFull,
    Unavailable,
)
from jaxsgl.lang.http_context import HttpContext
from jaxsgl.lang.http_fields import Dialect
from jaxsgl.offline.background import BackgroundLoop

MAX_CONNECTIONS = 256
"""Requests at a time; further ones wait for a connection."""
MAX_EVENT_LEN = 2**22
_ERRORS = {429: QueueFull, 503: Unavailable, 504: DeadlineExceeded}


class OpenAI:
    """A `backend.Backend`. Close it to have its connections and its thread back."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "https://api.openai.com/v1",
        api_key: str | None = None,
    ) -> None:
        """The key is what is given here and nothing else; no environment variable is read."""
        self._open_with(model, base_url, api_key, Dialect(is_jaxsgl=False))

    def _open_with(self, model: str, base_url: str, api_key: str | None, dialect: Dialect) -> None:
        self._model = model
        self._base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._dialect = dialect
        self._loop = BackgroundLoop("jaxsgl programs")
        self._session: aiohttp.ClientSession | None = None

    @property
    def loop(self) -> BackgroundLoop:
        return self._loop

    def open(self) -> HttpContext:
        return HttpContext(self.events, self._dialect)

    def close(self) -> None:
        """End what still runs. Idempotent."""
        if self._session is not None:
            self._loop.run(self._session.close())
            self._session = None
        self._loop.close()

    async def events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The events of a streamed answer. Raises EngineError, Unavailable if the connection fails
        or the stream is cut off."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None),
                read_bufsize=MAX_EVENT_LEN,
            )
        data = msgspec.json.encode({"model": self._model, "stream": True, **body})
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(
                f"{self._base_url}/{path}", data=data, headers=headers
            ) as response:
                if response.status != 200:
                    raise _error(await response.read(), response.status)
                async for line in response.content:
                    if not line.startswith(b"data:"):
                        continue
                    event = line.removeprefix(b"data:").strip()
                    if event == b"[DONE]":
                        return
                    decoded = msgspec.json.decode(event)
                    if "error" in decoded:
                        raise _error(event, 500)
                    yield decoded
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{self._base_url}: {error}") from error
        except (msgspec.DecodeError, asyncio.LimitOverrunError, ValueError) as error:
            raise EngineError(f"{self._base_url} does not speak OpenAI's API: {error}") from error
        raise Unavailable(f"{self._base_url}: the stream was cut off")


class RuntimeEndpoint(OpenAI):
    """A jaxsgl server, by its URL. A `backend.Backend`."""

    def __init__(self, base_url: str, *, api_key: str | None = None) -> None:
        url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._open_with("default", url, api_key, Dialect(is_jaxsgl=True))


def _error(body: bytes, status: int) -> EngineError:
    """What an error's body says, in our own terms."""
    try:
        detail = msgspec.json.decode(body)["error"]
        message, param, code = detail["message"], detail.get("param"), detail.get("code")
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        message, param, code = body[:200].decode(errors="replace"), None, None
    kind = _ERRORS.get(status, InvalidRequest if 400 <= status < 500 else EngineError)
    error = kind(f"{message} (HTTP {status})" if status != 500 else str(message))
    error.param, error.code = param, code
    return error
