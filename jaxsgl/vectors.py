"""Embeddings as the engine hands them out: float32 numbers in the machine's byte order."""

from __future__ import annotations

import array
import base64
import math
import sys


def floats_of(vector: bytes) -> list[float]:
    return array.array("f", vector).tolist()


def base64_of(vector: bytes) -> str:
    """Little-endian, as OpenAI's clients read it."""
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values).decode()


def shortened(vector: bytes, num_dimensions: int) -> bytes:
    """The first numbers of a vector, scaled to length 1 again."""
    values = array.array("f", vector)[:num_dimensions]
    length = math.hypot(*values) or 1.0
    return array.array("f", [value / length for value in values]).tobytes()
