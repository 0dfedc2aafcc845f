"""Takes the reasoning of a model out of what it writes. No I/O."""

from __future__ import annotations

from typing import Literal

from server.tools.pieces import Content, Piece, Reasoning

BEGIN, END = "<think>", "</think>"

ReasoningFormat = Literal["deepseek-r1", "qwen3"]
REASONING_FORMATS: tuple[ReasoningFormat, ...] = ("deepseek-r1", "qwen3")
"""Both write `<think>...</think>` before the answer. deepseek-r1 always reasons, and its templates
often write the beginning; qwen3 reasons where it or its template says so."""


def is_open(format: ReasoningFormat, prompt_end: str) -> bool | None:
    """Whether an answer begins in the midst of reasoning, judged by how its prompt ends; None if
    the answer itself will tell."""
    if prompt_end.rstrip().endswith(END):
        return False
    if prompt_end.rstrip().endswith(BEGIN) or format == "deepseek-r1":
        return True
    return None


class ReasoningSplitter:
    """The pieces are the same, joined, however the text was cut. White space around the reasoning
    and before the answer is left out."""

    def __init__(self, opened: bool | None) -> None:
        """`opened`: see `is_open`."""
        self._held: str = ""
        self._opened = opened
        self._at: Literal["start", "begin", "reasoning", "end", "content"] = (
            "content" if opened is False else "start"
        )

    @property
    def reasoning(self) -> bool:
        """Whether the end of the reasoning, if there is any, has not come."""
        return self._at in ("start", "begin", "reasoning")

    def feed(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._held:
            at, held = self._at, self._held
            self._step(pieces)
            if (self._at, self._held) == (at, held):
                break
        return pieces

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        match self._at:
            case "start" if not self._opened:
                return [Content(held)]
            case "start" | "begin" | "reasoning":
                return [Reasoning(held.rstrip())]
            case _:
                return []

    def _step(self, pieces: list[Piece]) -> None:
        held = self._held
        match self._at:
            case "start":
                begun = held.lstrip()
                if begun.startswith(BEGIN):
                    self._at, self._held = "begin", begun[len(BEGIN) :]
                elif not BEGIN.startswith(begun):
                    self._at = "begin" if self._opened else "content"
            case "begin":
                self._held = held.lstrip()
                if self._held:
                    self._at = "reasoning"
            case "reasoning":
                text, found, rest = held.partition(END)
                if found:
                    pieces.append(Reasoning(text.rstrip()))
                    self._at, self._held = "end", rest
                else:
                    keep = _begun_len(held, END)
                    core = held[: len(held) - keep].rstrip()
                    pieces.append(Reasoning(core))
                    self._held = held[len(core) :]
            case "end":
                self._held = held.lstrip()
                if self._held:
                    self._at = "content"
            case "content":
                pieces.append(Content(held))
                self._held = ""


def _begun_len(text: str, marker: str) -> int:
    """Length of the longest end of `text` with which `marker` begins."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if marker.startswith(text[len(text) - length :]):
            return length
    return 0
