"""The back end of programs that name none."""

from __future__ import annotations

import threading

import jaxsgl
from jaxsgl.lang.backend import Backend
from jaxsgl.lang.engine_backend import EngineBackend
from jaxsgl.lang.http_backend import RuntimeEndpoint
from jaxsgl.offline.offline_engine import OfflineEngine

type AnyBackend = Backend | OfflineEngine | str
"""A back end, an engine in this process, or the URL of a jaxsgl server."""


class _Default:
    """One per process, as its name says."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._backend: Backend | None = None

    def set(self, backend: Backend | None) -> None:
        with self._lock:
            self._backend = backend

    def get(self) -> Backend:
        with self._lock:
            if self._backend is None:
                self._backend = EngineBackend(jaxsgl.Engine())
            return self._backend


_DEFAULT = _Default()


def set_default_backend(backend: AnyBackend | None) -> None:
    """For programs that are run without one. None is what it was in the beginning: the default
    model, started in this process when it is needed."""
    _DEFAULT.set(None if backend is None else as_backend(backend))


def default_backend() -> Backend:
    """Raises what Engine raises, if it has to be started."""
    return _DEFAULT.get()


def as_backend(given: AnyBackend) -> Backend:
    if isinstance(given, OfflineEngine):
        return EngineBackend(given)
    return RuntimeEndpoint(given) if isinstance(given, str) else given
