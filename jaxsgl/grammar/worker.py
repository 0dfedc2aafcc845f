"""Compiles grammars in a process of its own, where it may take too long or too much memory.

`python -m jaxsgl.grammar.worker TIMEOUT_S MEMORY_BYTES` says one empty frame when it is ready. Then
each frame on standard input is a specification, answered by one frame on standard output. A frame
is four bytes of length, little-endian, and so many bytes.
"""

from __future__ import annotations

import logging
import resource
import signal
import sys
from typing import BinaryIO

import msgspec

from jaxsgl.grammar.compiler import compile_tables
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.tables import encode_tables
from jaxsgl.interface import GrammarSpec

MAX_TABLES_BYTES = 16 << 20
ALARM_GRACE_S = 5.0
"""Beyond the time limit, after which a worker that nobody ended ends itself."""

log = logging.getLogger(__name__)


class Compiled(msgspec.Struct, frozen=True, tag="compiled"):
    tables: bytes
    """As `tables.encode_tables` made them."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    message: str
    line: int | None = None


def answer(spec: GrammarSpec) -> Compiled | Refused:
    """Compile; whatever goes wrong is a refusal."""
    try:
        data = encode_tables(compile_tables(spec))
    except GrammarError as error:
        return Refused(error.reason, error.line)
    except MemoryError:
        return Refused("compiling the grammar takes too much memory")
    except RecursionError:
        return Refused("the grammar is nested too deeply")
    except Exception:
        log.exception("a grammar could not be compiled")
        return Refused("the grammar could not be compiled")
    if len(data) > MAX_TABLES_BYTES:
        return Refused("the compiled grammar is too large")
    return Compiled(data)


def serve(timeout_s: float, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer until `requests` ends."""
    decoder = msgspec.msgpack.Decoder(GrammarSpec)
    _write(replies, b"")
    while head := requests.read(4):
        spec = decoder.decode(requests.read(int.from_bytes(head, "little")))
        signal.setitimer(signal.ITIMER_REAL, timeout_s + ALARM_GRACE_S)
        reply = answer(spec)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(replies, msgspec.msgpack.encode(reply))


def _write(replies: BinaryIO, data: bytes) -> None:
    replies.write(len(data).to_bytes(4, "little") + data)
    replies.flush()


def main() -> None:
    timeout_s, max_bytes = float(sys.argv[1]), int(sys.argv[2])
    # A terminal sends it to all; who started this process decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    serve(timeout_s, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
