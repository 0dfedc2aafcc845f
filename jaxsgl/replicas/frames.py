"""Messages as length-prefixed msgpack frames. No I/O here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from jaxsgl.actors.messages import ToFront, ToReplica
from jaxsgl.config import EngineConfig
from jaxsgl.logs import LogSettings

MAX_FRAME_BYTES = 64 << 20
"""A step that reports the log-probabilities of many long prompts stays far below."""

_HEADER_BYTES = 4
_encoder = msgspec.msgpack.Encoder()


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """replica -> front, first of all: proof that this is the process that the front started."""

    token: str


class Start(msgspec.Struct, frozen=True, tag="start"):
    """front -> replica, the answer to Hello: what to build."""

    epoch: int
    """How many replicas this front has started before."""
    config: EngineConfig
    log: LogSettings


FromFront = Start | ToReplica
FromReplica = Hello | ToFront

from_front_decoder: msgspec.msgpack.Decoder[FromFront] = msgspec.msgpack.Decoder(FromFront)
from_replica_decoder: msgspec.msgpack.Decoder[FromReplica] = msgspec.msgpack.Decoder(FromReplica)


class FrameError(Exception):
    """The bytes are not frames of this protocol, or a frame is too large."""


def encode_frame(message: Any, encoder: msgspec.msgpack.Encoder = _encoder) -> bytearray:
    """Raises FrameError if the message is too large to be taken by the other side."""
    frame = bytearray(_HEADER_BYTES)
    encoder.encode_into(message, frame, _HEADER_BYTES)
    body_len = len(frame) - _HEADER_BYTES
    if body_len > MAX_FRAME_BYTES:
        raise FrameError(f"a {type(message).__name__} of {body_len} bytes does not fit a frame")
    frame[:_HEADER_BYTES] = body_len.to_bytes(_HEADER_BYTES, "big")
    return frame


class FrameReader[M]:
    """Cuts a byte stream into messages.

    `max_frame_bytes` may be changed at any time and holds from the next frame on. A frame is
    refused by its header, before anything is kept for it.
    """

    def __init__(
        self, decoder: msgspec.msgpack.Decoder[M], max_frame_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """The messages that `data` completes. Raises FrameError; the stream is then lost."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _HEADER_BYTES:
                body = start + _HEADER_BYTES
                body_len = int.from_bytes(self._buffer[start:body], "big")
                if body_len > self.max_frame_bytes:
                    raise FrameError(f"a frame of {body_len} bytes is too large")
                if len(self._buffer) - body < body_len:
                    return
                start = body + body_len
                yield self._decode(body, start)
        finally:
            del self._buffer[:start]

    def _decode(self, start: int, end: int) -> M:
        try:
            with memoryview(self._buffer)[start:end] as body:
                return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"a frame that is no message: {error}") from None
