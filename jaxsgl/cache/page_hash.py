"""Names for cached prefixes that are the same in every process: a chain of hashes, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

HASH_BYTES = 8
"""A name that two prefixes share misleads an estimate and nothing else; of 10 million, one pair
does with a probability of 3 in a million."""


def root_hash(namespace: str) -> bytes:
    """The name of the empty prefix."""
    return blake2b(namespace.encode(), digest_size=HASH_BYTES).digest()


def page_hashes(name: bytes, tokens: bytes, page_bytes: int) -> Iterator[bytes]:
    """The names of the prefixes that go on behind the one called `name`, a page longer each.

    `tokens` are int32 ids as bytes; what does not fill a page is ignored.
    """
    for end in range(page_bytes, len(tokens) + 1, page_bytes):
        name = blake2b(name + tokens[end - page_bytes : end], digest_size=HASH_BYTES).digest()
        yield name


def split_hashes(data: bytes) -> list[bytes]:
    """The names that were joined into `data`."""
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
