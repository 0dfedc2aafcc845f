"""Programs on a server: jaxsgl's own or any that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from types import MappingProxyType
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
from jaxsgl.lang.backend import Release
from jaxsgl.lang.http_context import HttpContext
from jaxsgl.lang.http_fields import Dialect
from jaxsgl.lang.prefix_hold import HOLD_S, PrefixHold
from jaxsgl.offline.background import BackgroundLoop

MAX_CONNECTIONS = 256
"""Requests at a time; further ones wait for a connection."""
MAX_EVENT_LEN = 2**22
_CLOSE_TIMEOUT_S = 1.0
_JSON = MappingProxyType({"Content-Type": "application/json"})
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
        self._ending: set[asyncio.Task[None]] = set()
        """What is on its way so that the server keeps nothing for us."""

    @property
    def loop(self) -> BackgroundLoop:
        return self._loop

    def open(self) -> HttpContext:
        return HttpContext(self.events, self._dialect)

    def close(self) -> None:
        """End what still runs. Idempotent."""
        if self._session is not None:
            self._loop.run(self._close_session(self._session))
            self._session = None
        self._loop.close()

    async def _close_session(self, session: aiohttp.ClientSession) -> None:
        if self._ending:
            await asyncio.wait(self._ending, timeout=_CLOSE_TIMEOUT_S)
        await session.close()

    async def events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The events of a streamed answer. Raises EngineError, Unavailable if the connection fails
        or the stream is cut off."""
        data = msgspec.json.encode({"model": self._model, "stream": True, **body})
        try:
            async with self._open_session().post(
                f"{self._base_url}/{path}", data=data, headers=_JSON
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

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None),
                read_bufsize=MAX_EVENT_LEN,
            )
        return self._session


class RuntimeEndpoint(OpenAI):
    """A jaxsgl server, by its URL. A `backend.Backend`."""

    def __init__(self, base_url: str, *, api_key: str | None = None) -> None:
        url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._open_with("default", url, api_key, Dialect(is_jaxsgl=True))

    def open(self) -> HttpContext:
        return HttpContext(self.events, self._dialect, self._hold)

    def _hold(self, text: str) -> Release:
        """Have the server compute and keep a text. That it cannot is no error."""
        rid = uuid.uuid4().hex
        asked = {"text": text, "rid": rid, "hold_s": HOLD_S}
        computing = self._post("generate", asked | {"sampling_params": {"max_new_tokens": 0}})
        return PrefixHold(computing, lambda: self._let_go(rid)).release

    def _let_go(self, rid: str) -> None:
        ending = asyncio.create_task(self._post("abort_request", {"rid": rid}))
        self._ending.add(ending)
        ending.add_done_callback(self._on_let_go)

    def _on_let_go(self, ending: asyncio.Task[None]) -> None:
        self._ending.discard(ending)
        if not ending.cancelled():
            ending.exception()  # else the server lets go when the time is over

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        """Raises EngineError or aiohttp's errors."""
        url = f"{self._base_url.removesuffix('/v1')}/{path}"
        data = msgspec.json.encode(body)
        async with self._open_session().post(url, data=data, headers=_JSON) as response:
            answer = await response.read()
            if response.status != 200:
                raise _error(answer, response.status)


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
