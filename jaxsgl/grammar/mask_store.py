"""Token masks that have been computed, within a budget of bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable

from jaxsgl.grammar.vocabulary import Row

KEY_BYTES = 300
"""What a key costs, about."""


class MaskStore:
    """Maps keys to masks; equal masks are kept once. Safe from several threads.

    Beyond `max_bytes` the masks used longest ago are forgotten, with all their keys. Rows that were
    handed out stay valid; they must not be written to.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._digests: dict[Hashable, bytes] = {}
        self._rows: OrderedDict[bytes, tuple[Row, list[Hashable]]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of distinct masks."""
        return len(self._rows)

    @property
    def num_keys(self) -> int:
        return len(self._digests)

    def get(self, key: Hashable) -> Row | None:
        with self._lock:
            digest = self._digests.get(key)
            if digest is None:
                return None
            self._rows.move_to_end(digest)
            return self._rows[digest][0]

    def put(self, key: Hashable, row: Row) -> Row:
        """Keep a row; return the one that is kept in its place, which is equal."""
        digest = hashlib.blake2b(row.data, digest_size=16).digest()
        with self._lock:
            if key in self._digests:
                return row
            known = self._rows.get(digest)
            if known is None:
                row.flags.writeable = False
                known = self._rows[digest] = (row, [])
                self.num_bytes += row.nbytes
            self._rows.move_to_end(digest)
            known[1].append(key)
            self._digests[key] = digest
            self.num_bytes += KEY_BYTES
            while self.num_bytes > self.max_bytes and self._rows:
                _, (dropped, keys) = self._rows.popitem(last=False)
                self.num_bytes -= dropped.nbytes + KEY_BYTES * len(keys)
                for each in keys:
                    del self._digests[each]
            return known[0]
