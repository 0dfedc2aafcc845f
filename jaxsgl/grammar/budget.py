"""A cache bounded by the bytes of what it holds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable


class ByteLru[K: Hashable, V]:
    """Keeps the entries used last whose sizes sum up to `max_bytes`. Safe from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: K, value: V, num_bytes: int) -> None:
        """Add or replace an entry; one larger than the whole budget is not kept."""
        with self._lock:
            self._drop(key)
            if num_bytes > self.max_bytes:
                return
            self._entries[key] = (value, num_bytes)
            self.num_bytes += num_bytes
            self._evict()

    def grow(self, key: K, num_bytes: int) -> None:
        """Count `num_bytes` more for an entry, if it is still here."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries[key] = (entry[0], entry[1] + num_bytes)
                self.num_bytes += num_bytes
                self._evict()

    def _evict(self) -> None:
        while self.num_bytes > self.max_bytes:
            _, (_, num_bytes) = self._entries.popitem(last=False)
            self.num_bytes -= num_bytes

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= entry[1]
