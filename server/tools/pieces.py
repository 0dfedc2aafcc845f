"""What an answer is made of, in the order in which it comes."""

from __future__ import annotations

from dataclasses import dataclass


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
    for piece in pieces:
        last = result[-1] if result else None
        match piece, last:
            case (Content(""), _) | (Reasoning(""), _) | (CallArguments(_, ""), _):
                pass
            case Content(text), Content(before):
                result[-1] = Content(before + text)
            case Reasoning(text), Reasoning(before):
                result[-1] = Reasoning(before + text)
            case CallArguments(index, text), CallArguments(same, before) if same == index:
                result[-1] = CallArguments(index, before + text)
            case _:
                result.append(piece)
    return result
