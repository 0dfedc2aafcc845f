"""Lets so many requests in; the others wait in the order in which they came."""

from __future__ import annotations

import asyncio


class Gate:
    """Lives in one event loop. Who got in must `leave`."""

    def __init__(self, num_places: int) -> None:
        self._num_places = num_places
        self._waiting: dict[str, asyncio.Future[bool]] = {}

    async def enter(self, request_id: str) -> bool:
        """Wait for a place. True with a place, False without one when it was called off.

        No two requests of one id may wait at a time.
        """
        if self._num_places:
            self._num_places -= 1
            return True
        turn = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        try:
            return await turn
        except asyncio.CancelledError:
            self._waiting.pop(request_id, None)
            if turn.done() and not turn.cancelled() and turn.result():
                self.leave()  # the place came in the very moment
            raise

    def leave(self) -> None:
        """Give a place back: the next in line has it."""
        while self._waiting:
            turn = self._waiting.pop(next(iter(self._waiting)))
            if not turn.done():
                turn.set_result(True)
                return
        self._num_places += 1

    def call_off(self, request_id: str) -> None:
        """End a wait. Nothing happens if the request does not wait."""
        turn = self._waiting.pop(request_id, None)
        if turn is not None and not turn.done():
            turn.set_result(False)
