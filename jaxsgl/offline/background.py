"""An event loop on a thread of its own, for programs that have none or another one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any

from jaxsgl.interface import Unavailable


class ShutDown(Unavailable):
    """The loop has ended, and with it all that was running in it."""

    def __init__(self) -> None:
        super().__init__("the engine has been shut down")


class BackgroundLoop:
    """Runs coroutines for other threads until it is closed.

    Its thread is a daemon: a program that ends without closing it is not held up.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._stop = asyncio.Event()
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(started)), name=name, daemon=True
        )
        self._thread.start()
        self._loop = started.result()

    def submit[T](self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine. Cancelling the future cancels it. Raises ShutDown."""
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise ShutDown

    def run[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end. Interrupted, it is cancelled. Raises ShutDown."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except CancelledError:
            raise ShutDown from None
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel what runs and end the thread. Idempotent; not to be called from the loop."""
        with self._lock:
            if not self._closed:
                self._closed = True
                # Behind everything that was submitted, which is therefore cancelled, not lost.
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _live(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        started.set_result(asyncio.get_running_loop())
        await self._stop.wait()
