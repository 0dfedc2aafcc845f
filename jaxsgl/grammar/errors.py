"""What compiling a grammar raises."""

from __future__ import annotations


class GrammarError(Exception):
    """The grammar cannot be served as it is written; the text is one line for its author.

    `line` is the line of the grammar it is about, from 1, where that is known; `reason` is the text
    without it.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"{message} (line {line})")
        self.reason = message
        self.line = line
