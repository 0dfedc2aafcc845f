"""TCP between machines."""

from __future__ import annotations

import socket

_SILENCE_S = 5
"""Without a word, the kernel asks whether the other machine is still there..."""
_GONE_MS = 15_000
"""...and gives it up after this."""


def watch_peer(sock: socket.socket) -> None:
    """Have the connection end when the other machine is gone; and send small messages at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _SILENCE_S),
        ("TCP_KEEPINTVL", _SILENCE_S),
        ("TCP_USER_TIMEOUT", _GONE_MS),
    ):
        if (number := getattr(socket, name, None)) is not None:  # not on every system
            sock.setsockopt(socket.IPPROTO_TCP, number, value)


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def join_address(host: str, port: int) -> str:
    """HOST:PORT, as `split_address` takes it apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"{text!a} is no HOST:PORT")
    return host.strip("[]"), int(port)
