"""Changes of what is on the devices."""

from __future__ import annotations

from typing import Literal

import msgspec

MemoryPart = Literal["kv_cache", "weights"]
MEMORY_PARTS: tuple[MemoryPart, ...] = ("kv_cache", "weights")


class UpdateWeights(msgspec.Struct, frozen=True, kw_only=True, tag="update_weights"):
    """Serve the weights of another checkpoint of the same architecture and sizes."""

    model_path: str
    """As in `EngineConfig`."""
    load_format: str = "auto"
    weight_version: str | None = None
    """What to call them; None takes the number of updates since the start."""


class ReleaseMemory(msgspec.Struct, frozen=True, kw_only=True, tag="release_memory"):
    """Give device memory back and hold all requests until it is resumed. Weights are kept in the
    host's memory meanwhile. Parts that are released already stay so."""

    parts: tuple[MemoryPart, ...] = MEMORY_PARTS


class ResumeMemory(msgspec.Struct, frozen=True, kw_only=True, tag="resume_memory"):
    """Take the memory again. Requests go on when nothing is released any more."""

    parts: tuple[MemoryPart, ...] = MEMORY_PARTS


class Reshard(msgspec.Struct, frozen=True, kw_only=True, tag="reshard"):
    """Spread the model otherwise: over another mesh, or by other rules. The page pool keeps its
    size."""

    mesh: str | None = None
    """As in `EngineConfig`; None leaves it as it is. So with the rules."""
    sharding_rules: str | dict[str, str | list[str]] | None = None
    """As in `EngineConfig`, or mesh axes by the axis that is spread over them."""


EngineOperation = UpdateWeights | ReleaseMemory | ResumeMemory | Reshard
"""A change of what is on the devices. It is made between two steps; the KV cache is empty after it,
and requests that were running compute again what they had."""


class OperationReport(msgspec.Struct, frozen=True, kw_only=True):
    """How things are after an operation."""

    weight_version: str
    released: tuple[MemoryPart, ...]
    mesh: str = "tp=1"
    """As in `ModelInfo`."""
    notes: tuple[str, ...] = ()
    """What had to be replicated or repeated on it."""
    paused_s: float = 0.0
    """For how long no step could run because of it, from the end of the last one until steps might
    be planned again: of the replica that did it first, where there are several. Memory that is
    released holds steps back for longer."""
    compiled_s: float | None = None
    """How much of that went into compiling programs; None where none had to be compiled then."""


PauseMode = Literal["abort", "in_place", "retract"]
"""What becomes of the requests that run: they end, keep their KV, or give it up to compute it again
later."""
