"""What devices say to each other in a compiled program, read off its HLO text."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(rf"= (.*?)\s({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+)(\d+)?\w*\[([\d,]*)\]")


class Collectives(NamedTuple):
    """Of one run of the program, on each device. What a loop repeats counts once."""

    count: dict[str, int]
    """By kind."""
    num_bytes: dict[str, int]
    """Of the results, by kind."""


def read_collectives(hlo: str) -> Collectives:
    """The collectives of a compiled program, also of those that it starts and later waits for."""
    count: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    for line in hlo.splitlines():
        found = _INSTRUCTION.search(line)
        if found is None:
            continue
        result, kind, is_started = found.groups()
        arrays = [array for array in _ARRAY.findall(result) if array != ("u", "32", "")]
        if is_started and kind in ("all-gather", "collective-permute"):
            arrays = arrays[len(arrays) // 2 :]  # the first half repeats the operands
        count[kind] += 1
        num_bytes[kind] += sum(map(_num_bytes, arrays))
    return Collectives(dict(count), dict(num_bytes))


def _num_bytes(array: tuple[str, str, str]) -> int:
    """Of an array written like `bf16[4,64]`, split in letters, bits and sizes; `pred` has none."""
    _, bits, sizes = array
    return max(1, int(bits or 8) // 8) * math.prod(int(size) for size in sizes.split(",") if size)
