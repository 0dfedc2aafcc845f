"""The line between two processes of a world: a TCP socket, for threads that block."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import threading
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from jaxsgl.config import ConfigError
from jaxsgl.replicas.frames import MAX_FRAME_BYTES, FrameError, FrameReader, encode_frame
from jaxsgl.replicas.tcp import split_address, watch_peer
from jaxsgl.world.orders import encoder

HANDSHAKE_MAX_BYTES = 16 << 10
"""Nobody may make us keep more than this before he has shown that he knows the key."""
_READ_BYTES = 256 << 10
_MIN_KEY_BYTES = 16


class WireClosed(Exception):
    """The other side has closed, or is not to be understood."""


class Wire[In]:
    """One end. `send` is for any thread, `receive` for one."""

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[In]) -> None:
        self._socket = sock
        self._reader = FrameReader(decoder, HANDSHAKE_MAX_BYTES)
        self._received: deque[In] = deque()
        self._sending = threading.Lock()
        watch_peer(sock)

    def trust(self) -> None:
        """The other side has shown who it is: it may send what is large, and be silent."""
        self._reader.max_frame_bytes = MAX_FRAME_BYTES
        self._socket.settimeout(None)

    def send(self, message: Any) -> None:
        """Raises WireClosed."""
        frame = encode_frame(message, encoder)
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError as error:
            raise WireClosed(str(error)) from None

    def receive(self) -> In:
        """The next message. Raises WireClosed at the end, and when a stranger is silent."""
        while not self._received:
            try:
                data = self._socket.recv(_READ_BYTES)
                self._received.extend(self._reader.feed(data))
            except (OSError, FrameError) as error:
                raise WireClosed(str(error)) from None
            if not data:
                raise WireClosed("closed by the other side")
        return self._received.popleft()

    def close(self) -> None:
        """Idempotent, and for any thread: one that receives is woken."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def read_key(path: str) -> bytes:
    """The secret in a file that every machine of a world has. Raises ConfigError."""
    try:
        key = Path(path).expanduser().read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"--world-key-file {path}: {error.strerror or error}") from None
    if len(key) < _MIN_KEY_BYTES:
        raise ConfigError(f"--world-key-file {path}: less than {_MIN_KEY_BYTES} characters")
    return key


def proof_of(key: bytes, nonce: str, rank: int) -> str:
    """What only one that has the key can say, and only to this nonce."""
    return hmac.new(key, f"{nonce} {rank}".encode(), hashlib.sha256).hexdigest()


def world_address(text: str) -> tuple[str, int]:
    """Host and port of --dist-init-addr. Raises ConfigError."""
    try:
        return split_address(text)
    except ValueError as error:
        raise ConfigError(f"--dist-init-addr {error}") from None
