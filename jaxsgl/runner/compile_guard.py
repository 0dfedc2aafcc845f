"""Notices programs that are compiled when none should be any more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jax import monitoring

BACKEND_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
"""What jax reports each time a program has to be made: compiled, or read from the persistent cache.
A call of a program that the process already holds reports nothing."""


class RecompileForbidden(Exception):
    """A program was compiled while serving."""


class CompileGuard:
    """Counts programs that jax makes in this process while the guard is armed. With `forbid`, the
    call that needs one raises RecompileForbidden, each time anew: jax does not keep its program."""

    def __init__(self, *, forbid: bool = False) -> None:
        self.recompiles = 0
        self._forbid = forbid
        self._armed = False
        self._listening = True
        monitoring.register_event_duration_secs_listener(self._on_duration)

    def arm(self) -> None:
        self._armed = True

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Not armed meanwhile: for what is no part of a step."""
        armed, self._armed = self._armed, False
        try:
            yield
        finally:
            self._armed = armed

    def close(self) -> None:
        """Stop listening; the count stays."""
        if self._listening:
            self._listening = False
            monitoring.unregister_event_duration_listener(self._on_duration)

    def _on_duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if self._armed and event == BACKEND_COMPILE_EVENT:
            self.recompiles += 1
            if self._forbid:
                raise RecompileForbidden(
                    f"a program was compiled while serving, in {duration_secs:.3f} s, which "
                    "--forbid-recompiles makes an error"
                )
