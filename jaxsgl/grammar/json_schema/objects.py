"""The names that additional properties may have."""

from __future__ import annotations

import re

import msgspec

_PLAIN = r'\x00-\x1f\x7f"\\'
_ANY = f"[^{_PLAIN}]"


def other_names(names: list[str]) -> str:
    """A pattern of JSON strings, written without escapes, that are none of `names`."""
    written = {msgspec.json.encode(name).decode()[1:-1] for name in names}
    return f'"{_other(sorted(text for text in written if chr(92) not in text))}"'


def _other(texts: list[str]) -> str:
    """What is none of the sorted `texts`."""
    heads: dict[str, list[str]] = {}
    for text in texts:
        if text:
            heads.setdefault(text[0], []).append(text[1:])
    if not heads:
        return f"{_ANY}+" if texts else f"{_ANY}*"
    others = f"[^{_PLAIN}{''.join(f'{chr(92)}U{ord(head):08x}' for head in heads)}]{_ANY}*"
    parts = [others, *(re.escape(head) + _other(rest) for head, rest in heads.items())]
    end = "" if "" in texts else "|"
    return f"(?:{'|'.join(parts)}{end})"
