"""What an answer is made of, in the order in which it comes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of the function `name`; calls of an answer are numbered from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of a call. All of them, joined, are one JSON object."""

    index: int
    text: str


Piece = Content | Reasoning | CallBegin | CallArguments


def merged(pieces: list[Piece]) -> list[Piece]:
    """The same with neighbours of one kind joined, and without what is empty."""
    result: list[Piece] = []
    said = (piece for piece in pieces if isinstance(piece, CallBegin) or piece.text)
    for _, neighbours in groupby(said, _kind):
        first, *others = neighbours
        if isinstance(first, CallBegin) or not others:
            result += [first, *others]
        else:
            texts = [each.text for each in (first, *others) if not isinstance(each, CallBegin)]
            result.append(replace(first, text="".join(texts)))
    return result


def _kind(piece: Piece) -> tuple[type[Piece], int | None]:
    return type(piece), getattr(piece, "index", None)
