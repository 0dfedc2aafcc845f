"""Token masks that have been computed, within a budget of bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable

from jaxsgl.grammar.vocabulary import Row

KEY_BYTES = 300
"""What a key costs, about."""


class _Kept:
    __slots__ = ("keys", "row", "used")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.keys: list[Hashable] = []
        self.used = False
        """Since it was kept or last thought of as one to forget."""


class MaskStore:
    """Maps keys to masks; equal masks are kept once. Safe from several threads.

    Beyond `max_bytes` masks are forgotten, with all their keys: the oldest, but each that was used
    gets a second chance. (Finding one is then a look-up and a mark, without waiting for anybody.)
    Rows that were handed out stay valid; they must not be written to.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._by_key: dict[Hashable, _Kept] = {}
        self._by_digest: OrderedDict[bytes, _Kept] = OrderedDict()
        """The next to be thought of first."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of distinct masks."""
        return len(self._by_digest)

    @property
    def num_keys(self) -> int:
        return len(self._by_key)

    def get(self, key: Hashable) -> Row | None:
        kept = self._by_key.get(key)
        if kept is None:
            return None
        kept.used = True
        return kept.row

    def put(self, key: Hashable, row: Row) -> Row:
        """Keep a row; return the one that is kept in its place, which is equal."""
        digest = hashlib.blake2b(row.data, digest_size=16).digest()
        needed_bytes = row.nbytes + KEY_BYTES
        with self._lock:
            if key in self._by_key or needed_bytes > self.max_bytes:
                return row
            while self.num_bytes + needed_bytes > self.max_bytes:
                self._think_of_one()
            kept = self._by_digest.get(digest)
            if kept is None:
                row.flags.writeable = False
                kept = self._by_digest[digest] = _Kept(row)
                self.num_bytes += row.nbytes
            kept.keys.append(key)
            self._by_key[key] = kept
            self.num_bytes += KEY_BYTES
            return kept.row

    def _think_of_one(self) -> None:
        digest, kept = self._by_digest.popitem(last=False)
        if kept.used:
            kept.used = False
            self._by_digest[digest] = kept
            return
        self.num_bytes -= kept.row.nbytes + KEY_BYTES * len(kept.keys)
        for key in kept.keys:
            del self._by_key[key]
