"""What a server has left when replicas die, and how it is told. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """One replica's part of a server."""

    devices: tuple[str, ...]
    num_pages: int
    in_pool: bool


def loss_lines(device_kind: str, lost: Sequence[str], shares: Sequence[Share]) -> tuple[str, ...]:
    """What to say when `lost`, the devices of one replica, have left the pool: a warning for each,
    then one line of what remains."""
    gone = [
        f"{device_kind} {device} became unresponsive. Removed from scheduling pool."
        for device in lost
    ]
    return (
        *gone,
        f"{active_line(device_kind, shares)} "
        f"Total capacity reduced by {100 * _lost_share(shares):.0f}%.",
    )


def active_line(device_kind: str, shares: Sequence[Share]) -> str:
    active = [device for share in shares if share.in_pool for device in share.devices]
    return f"Active {device_kind}s: [{', '.join(active)}]."


def _lost_share(shares: Sequence[Share]) -> float:
    """By KV pages; by devices while nobody has said how many pages there are."""
    sizes = [share.num_pages for share in shares]
    if not all(sizes):
        sizes = [len(share.devices) for share in shares]
    lost = [size for size, share in zip(sizes, shares, strict=True) if not share.in_pool]
    return sum(lost) / sum(sizes)
