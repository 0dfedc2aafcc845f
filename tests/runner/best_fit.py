"""A model of the allocator of jax's memory on GPUs, as far as places are concerned."""

from __future__ import annotations

from typing import NamedTuple

ROUNDING = 256
MAX_ADDED = 128 * 2**20
"""A piece is given as a whole if it is less than twice, and by less than this, larger than asked
for."""


class Piece(NamedTuple):
    start: int
    size: int


class BestFit:
    """Gives the smallest free piece that is large enough, the lowest of several; free neighbours
    are one piece; nothing ever moves."""

    def __init__(self, size: int) -> None:
        self.free = [Piece(0, size)]

    def take(self, size: int) -> Piece:
        """Raises MemoryError."""
        size = -(-size // ROUNDING) * ROUNDING
        fitting = [piece for piece in self.free if piece.size >= size]
        if not fitting:
            raise MemoryError(f"no piece of {size} bytes")
        best = min(fitting, key=lambda piece: (piece.size, piece.start))
        self.free.remove(best)
        if best.size < 2 * size and best.size - size < MAX_ADDED:
            return best
        self.free.append(Piece(best.start + size, best.size - size))
        return Piece(best.start, size)

    def give(self, piece: Piece) -> None:
        for other in list(self.free):
            if other.start + other.size == piece.start or piece.start + piece.size == other.start:
                self.free.remove(other)
                piece = Piece(min(piece.start, other.start), piece.size + other.size)
        self.free.append(piece)
