"""Takes an answer apart as it comes: reasoning, content, tool calls. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from server.reasoning import ReasoningSplitter
from server.tools.formats import CallParser
from server.tools.pieces import Content, Piece, merged


class AnswerReader:
    """Of one answer. The pieces are the same, joined, however its text was cut."""

    def __init__(self, splitter: ReasoningSplitter | None, calls: CallParser | None) -> None:
        self._splitter = splitter
        self._calls = calls

    @property
    def reasoning(self) -> bool:
        """Whether what was read last is reasoning."""
        return self._splitter is not None and self._splitter.reasoning

    def feed(self, text: str) -> list[Piece]:
        pieces = [Content(text)] if self._splitter is None else self._splitter.feed(text)
        return merged(self._with_calls(pieces))

    def finish(self) -> list[Piece]:
        pieces = self._with_calls([] if self._splitter is None else self._splitter.finish())
        if self._calls is not None:
            pieces += self._calls.finish()
        return merged(pieces)

    def _with_calls(self, pieces: Sequence[Piece]) -> list[Piece]:
        calls = self._calls
        if calls is None:
            return list(pieces)
        return [
            part
            for piece in pieces
            for part in (calls.feed(piece.text) if isinstance(piece, Content) else [piece])
        ]
