"""The requests that one replica knows of, as the front sees them."""

from __future__ import annotations

from collections.abc import Iterable

from jaxsgl.actors.output_stream import OutputStream
from jaxsgl.interface import EngineError, InvalidRequest
from jaxsgl.scheduling.outputs import RowOutput


class _Entry:
    __slots__ = ("abort_sent", "finished", "stream")

    def __init__(self) -> None:
        self.stream: OutputStream | None = OutputStream()
        """None once its reader has gone."""
        self.finished = False
        self.abort_sent = False


class RequestTable:
    """An id is here from its admission until the replica has said that nothing of it is left.

    Until then an abort can still reach it and the id cannot be used again, whatever its reader did.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def open(self, request_id: str) -> OutputStream:
        """Raises InvalidRequest if the id is in use."""
        if request_id in self._entries:
            raise InvalidRequest(f"request id {request_id!r} is in use", param="request_id")
        entry = self._entries[request_id] = _Entry()
        assert entry.stream is not None
        return entry.stream

    def push(self, row: RowOutput) -> None:
        """Rows of ids that are not here, or that nobody reads any more, are dropped."""
        entry = self._entries.get(row.request_id)
        if entry is None:
            return
        entry.finished = entry.finished or row.finish is not None
        if entry.stream is not None:
            entry.stream.push(row)

    def refuse(self, request_id: str, error: EngineError) -> None:
        """The replica cannot serve it; there will be no rows."""
        entry = self._entries.get(request_id)
        if entry is not None:
            entry.finished = True
            if entry.stream is not None:
                entry.stream.fail(error)

    def start_abort(self, request_id: str) -> bool:
        """Whether an abort is to be sent: the request is running, and none was sent before."""
        entry = self._entries.get(request_id)
        if entry is None or entry.finished or entry.abort_sent:
            return False
        entry.abort_sent = True
        return True

    def leave(self, request_id: str) -> None:
        """Its reader has gone."""
        entry = self._entries.get(request_id)
        if entry is not None:
            entry.stream = None

    def release(self, request_id: str) -> None:
        """The replica has let go of it."""
        entry = self._entries.pop(request_id, None)
        if entry is not None and entry.stream is not None and not entry.finished:
            entry.stream.fail(EngineError("the replica gave up the request"))

    def cut_off(self, request_id: str, error: EngineError) -> None:
        """The replica ended it with itself: what it said last does not count."""
        entry = self._entries.get(request_id)
        if entry is not None and not entry.finished:
            entry.finished = True
            if entry.stream is not None:
                entry.stream.fail(error)

    def fail_all(self, error: EngineError) -> None:
        """The replica has gone."""
        for entry in self._entries.values():
            if entry.stream is not None and not entry.finished:
                entry.stream.fail(error)
        self._entries.clear()


def named(request_ids: Iterable[str], name: str) -> list[str]:
    """The ids that `name` stands for: itself, and those that it begins, before a hyphen."""
    return [each for each in request_ids if each == name or each.startswith(f"{name}-")]
