"""Damages the header of a file at random."""

from __future__ import annotations

import struct

import numpy as np

INTERESTING = np.array([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1], np.uint64)


def mutated(data: bytes, draw: np.random.Generator, header_len: int) -> bytes:
    """Return the file with a few bytes of its header changed, removed or repeated."""
    changed = bytearray(data)
    for place in draw.integers(header_len, size=draw.integers(1, 4)):
        match draw.integers(5):
            case 0:
                changed[place] = draw.integers(256)
            case 1:
                changed[place] ^= 1 << draw.integers(8)
            case 2:
                changed[place : place + 8] = struct.pack("<Q", draw.choice(INTERESTING))
            case 3:
                del changed[place : place + draw.integers(1, 9)]
            case _:
                changed[place:place] = changed[place : place + draw.integers(1, 33)]
    return bytes(changed)
