"""The bytes that each token of a vocabulary adds to a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_level_characters() -> dict[str, int]:
    """Return the alphabet in which byte-level BPE writes bytes: printable character -> byte.

    Bytes that are printable in Latin-1 stand for themselves, the others for U+0100 and up
    (Radford et al. 2019, the vocabulary of GPT-2).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    characters.update((chr(0x100 + index), byte) for index, byte in enumerate(others))
    return characters


def byte_level_bytes(tokens: Mapping[str, int]) -> list[bytes]:
    """Return id -> bytes for tokens in the byte-level alphabet; an id without a token has b"".

    A token with a character outside the alphabet stands for its own text.
    """
    # Through Latin-1, which maps the first 256 characters to the bytes of the same number.
    table = str.maketrans({char: chr(byte) for char, byte in byte_level_characters().items()})
    alphabet = frozenset(byte_level_characters())
    return _by_id(
        (id_, text.translate(table).encode("latin-1"))
        if alphabet.issuperset(text)
        else (id_, text.encode())
        for text, id_ in tokens.items()
    )


def sentencepiece_bytes(tokens: Mapping[str, int]) -> list[bytes]:
    """Return id -> bytes for tokens that write a space as U+2581 and a single byte as <0xAB>."""
    return _by_id(
        (id_, bytes.fromhex(match[1]))
        if (match := _BYTE_TOKEN.fullmatch(text))
        else (id_, text.replace("\u2581", " ").encode())
        for text, id_ in tokens.items()
    )


def _by_id(items: Iterable[tuple[int, bytes]]) -> list[bytes]:
    found = dict(items)
    return [found.get(id_, b"") for id_ in range(max(found, default=-1) + 1)]
