"""Ranges of numbers as regular expressions over their decimal notation."""

from __future__ import annotations

INTEGER = r"-?(?:0|[1-9][0-9]*)"
NUMBER = rf"{INTEGER}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"


def integers(low: int | None, high: int | None) -> str | None:
    """A pattern of the integers between `low` and `high`, both included; None if there are none."""
    if low is not None and high is not None and low > high:
        return None
    parts: list[str] = []
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        parts.append(f"-(?:{_naturals(least, None if low is None else -low)})")
    if high is None or high >= 0:
        parts.append(_naturals(max(low or 0, 0), high))
    return f"(?:{'|'.join(parts)})"


def numbers(
    low: int | None, high: int | None, *, without_low: bool, without_high: bool
) -> str | None:
    """A pattern of the decimal numbers between two integers, without exponents.

    `without_low` and `without_high` leave the bounds themselves out. None if nothing is left.
    """
    parts: list[str] = []
    if low is None or low < 0:
        nearest = 0 if high is None or high >= 0 else -high
        farthest = None if low is None else -low
        # Minus zero belongs to the other half.
        leave_out = nearest == 0 or without_high
        part = _positive(nearest, farthest, leave_out, without_low)
        parts += [] if part is None else [f"-{part}"]
    if high is None or high >= 0:
        part = _positive(
            max(low or 0, 0),
            high,
            without_low and (low or 0) >= 0 and low is not None,
            without_high,
        )
        parts += [] if part is None else [part]
    return f"(?:{'|'.join(parts)})" if parts else None


def _positive(low: int, high: int | None, without_low: bool, without_high: bool) -> str | None:
    """Numbers from `low` to `high`, of which `low` is not negative."""
    fraction = r"\.[0-9]+"
    nonzero = r"\.[0-9]*[1-9][0-9]*"
    zero = r"(?:\.0+)?"
    parts: list[str] = []
    if high is not None and low > high:
        return None
    if low == high:
        return None if without_low or without_high else f"{low}{zero}"
    if without_low:
        parts.append(f"{low}{nonzero}")
        low += 1
    if high is None or low < high:
        parts.append(f"(?:{_naturals(low, None if high is None else high - 1)})(?:{fraction})?")
    if high is not None and not without_high:
        parts.append(f"{high}{zero}")
    return f"(?:{'|'.join(parts)})" if parts else None


def _naturals(low: int, high: int | None) -> str:
    """Integers from `low` >= 0 to `high` >= `low`, without leading zeros."""
    if high is None:
        if low == 0:
            return r"0|[1-9][0-9]*"
        width = len(str(low))
        return f"{_naturals(low, 10**width - 1)}|[1-9][0-9]{{{width},}}"
    parts: list[str] = []
    while low <= high:
        width = len(str(low))
        top = min(high, 10**width - 1)
        parts += _same_width(str(low), str(top))
        low = 10**width
    return "|".join(parts)


def _same_width(low: str, high: str) -> list[str]:
    """Texts of digits of equal length that lie between two."""
    if low == high:
        return [low]
    if len(low) == 1:
        return [f"[{low}-{high}]"]
    first, last = low[0], high[0]
    rest = len(low) - 1
    if first == last:
        return [first + each for each in _same_width(low[1:], high[1:])]
    parts: list[str] = []
    if low[1:] != "0" * rest:
        parts += [first + each for each in _same_width(low[1:], "9" * rest)]
        first = str(int(first) + 1)
    top: list[str] = []
    if high[1:] != "9" * rest:
        top = [last + each for each in _same_width("0" * rest, high[1:])]
        last = str(int(last) - 1)
    if first <= last:
        parts.append(f"[{first}-{last}][0-9]{{{rest}}}")
    return parts + top
