"""The variables of a state, by name."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future

from jaxsgl.lang.errors import UnknownVariable
from jaxsgl.lang.variable import Variable


class Names:
    """Thread-safe: readers may come before the program has said that there is such a variable."""

    __slots__ = ("_closed", "_expected", "_inherited", "_lock", "_variables")

    def __init__(self, inherited: Mapping[str, Variable] | None = None) -> None:
        self._lock = threading.Lock()
        self._inherited = dict(inherited or {})
        self._variables = self._inherited.copy()
        self._expected: dict[str, list[Future[Variable]]] = {}
        self._closed = False

    def bind(self, name: str, variable: Variable) -> None:
        with self._lock:
            self._variables[name] = variable
            expected = self._expected.pop(name, [])
        for future in expected:
            if future.set_running_or_notify_cancel():
                future.set_result(variable)

    def close(self) -> None:
        """There will be no others. Idempotent."""
        with self._lock:
            self._closed = True
            expected, self._expected = self._expected, {}
        for name, futures in expected.items():
            for future in futures:
                if future.set_running_or_notify_cancel():
                    future.set_exception(self._unknown(name))

    def get(self, name: str) -> Variable:
        """Raises UnknownVariable."""
        with self._lock:
            if name in self._variables:
                return self._variables[name]
        raise self._unknown(name)

    def expect(self, name: str) -> Future[Variable]:
        """The variable once there is one, or UnknownVariable once it is certain that there is
        none."""
        future: Future[Variable] = Future()
        with self._lock:
            if name in self._variables:
                future.set_result(self._variables[name])
                return future
            if not self._closed:
                self._expected.setdefault(name, []).append(future)
                return future
        future.set_exception(self._unknown(name))
        return future

    def all(self) -> dict[str, Variable]:
        with self._lock:
            return self._variables.copy()

    def new(self) -> dict[str, Variable]:
        """Those that are not the ones it began with."""
        everything = self.all()
        return {
            name: variable
            for name, variable in everything.items()
            if self._inherited.get(name) is not variable
        }

    def _unknown(self, name: str) -> UnknownVariable:
        known = ", ".join(self.all()) or "none"
        return UnknownVariable(f"nothing sets a variable {name!r}; there are: {known}")
