"""Compiled tables kept on disk between runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

from jaxsgl.interface import GrammarSpec

FORMAT = 1
"""Raised with every change of what tables mean."""


@dataclass(frozen=True, slots=True)
class TablesFolder:
    """A folder of at most `max_bytes`; beyond them the files written first go.

    A file that is missing, damaged or of another version is as if it were not there, and a folder
    that cannot be written to keeps nothing. Safe for several processes.
    """

    folder: Path
    max_bytes: int

    def read(self, spec: GrammarSpec) -> bytes | None:
        """The encoded tables of a grammar."""
        try:
            data = self._path(spec).read_bytes()
        except OSError:
            return None
        digest, tables = data[:32], data[32:]
        return tables if hashlib.sha256(tables).digest() == digest else None

    def write(self, spec: GrammarSpec, tables: bytes) -> None:
        path = self._path(spec)
        part = path.with_suffix(f".{os.getpid()}.part")
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(hashlib.sha256(tables).digest() + tables)
            part.replace(path)
            self._make_room()

    def _path(self, spec: GrammarSpec) -> Path:
        key = msgspec.msgpack.encode([FORMAT, version("lark"), spec])
        return self.folder / f"{hashlib.sha256(key).hexdigest()}.tables"

    def _make_room(self) -> None:
        files = [(path.stat(), path) for path in self.folder.glob("*.tables")]
        num_bytes = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda each: each[0].st_mtime_ns):
            if num_bytes <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            num_bytes -= stat.st_size
