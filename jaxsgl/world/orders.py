"""What the processes of a world tell each other.

A world is one replica that spans processes: all of them run the same programs in the same order,
the leader (rank 0) decides which. Nothing else passes between them but what the programs exchange.
"""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from jaxsgl.config import EngineConfig
from jaxsgl.interface import EngineOperation
from jaxsgl.step import MaskRows, StepPlan


class Challenge(msgspec.Struct, frozen=True, tag="challenge"):
    """leader -> stranger, first of all."""

    nonce: str


class Join(msgspec.Struct, frozen=True, tag="join"):
    """stranger -> leader."""

    rank: int
    proof: str
    """That it knows the world's key; see `proof_of`."""
    config: EngineConfig
    """Must say the same as the leader's; see `settings_apart`."""


class Turned(msgspec.Struct, frozen=True, tag="turned away"):
    """leader -> one that has shown the key, but does not belong here."""

    why: str


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """leader -> follower, once all are there."""

    coordinator: str
    """HOST:PORT where `jax.distributed` meets."""


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Dispatch this. With `has_masks`, Masks are the next order."""

    plan: StepPlan
    """Without what only the leader's host needs."""
    has_masks: bool


class Masks(msgspec.Struct, frozen=True, tag="masks"):
    rows: MaskRows
    words: NDArray[np.uint32]
    """[masks, words]"""


class Reset(msgspec.Struct, frozen=True, tag="reset"):
    """See `step.Runner.reset`."""


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Beside the steps; answered with Prepared. See `step.Runner.prepare`."""

    ask_id: int
    operation: EngineOperation


class Carry(msgspec.Struct, frozen=True, tag="carry"):
    """Carry out what was prepared; answered with Carried."""

    ask_id: int


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Another process refused what was prepared."""

    ask_id: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End in order."""


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    ask_id: int
    refused: str | None
    """Why, if it was."""


class Carried(msgspec.Struct, frozen=True, tag="carried"):
    ask_id: int
    end: str
    """See `end_of`: the leader must have come to the same."""


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """follower -> leader, last of all: why it ends."""

    why: str


Order = Challenge | Turned | Welcome | Step | Masks | Reset | Prepare | Carry | Forget | Stop
Word = Join | Prepared | Carried | Broken


def end_of(error: Exception | None) -> str:
    """How an operation ended, in a word."""
    return "done" if error is None else type(error).__name__


def _encode_array(array: Any) -> Any:
    if not isinstance(array, np.ndarray):
        raise NotImplementedError(type(array))
    return (array.dtype.str, array.shape, array.tobytes())


def _decode_array(kind: Any, parts: Any) -> Any:
    if typing.get_origin(kind) is not np.ndarray:
        raise NotImplementedError(kind)
    dtype, shape, data = msgspec.convert(parts, tuple[str, tuple[int, ...], bytes])
    if dtype not in _DTYPES:
        raise ValueError(f"an array of {dtype!a}")
    return np.frombuffer(data, dtype).reshape(shape)


_DTYPES = ("<i4", "<u4", "|b1")

encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)
order_decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(
    Order, dec_hook=_decode_array
)
word_decoder: msgspec.msgpack.Decoder[Word] = msgspec.msgpack.Decoder(Word, dec_hook=_decode_array)
