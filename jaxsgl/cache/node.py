"""The parts a radix tree is made of, and what can be done to them without knowing the tree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jaxsgl.cache.eviction import EvictionQueue

TOKEN_BYTES = 4
"""Tokens are compared as the bytes of an int32 array: exact, and at the speed of memcmp."""


@dataclass(slots=True, eq=False)
class Receipt:
    """Proof of a lock on the path from the root to `offset` pages into the edge of `node`."""

    node: Node
    offset: int
    priority: int
    live: bool = True
    """Not yet given back."""


@dataclass(slots=True, eq=False)
class Node:
    """An edge of one or more whole pages, and what follows it. A root has an empty edge."""

    namespace: Namespace
    parent: Node | None
    tokens: bytes
    """The edge's tokens as int32 bytes."""
    pages: NDArray[np.int32]
    """The edge's pages, in order."""
    children: dict[bytes, Node] = field(default_factory=dict[bytes, "Node"])
    """By the first page of their tokens."""
    pins: dict[int, set[Receipt]] = field(default_factory=dict[int, set[Receipt]])
    """The receipts that end in this edge, by offset."""
    num_locked_children: int = 0
    """Children with a protected page."""
    num_protected: int = 0
    """Pages at the head of the edge that some receipt's path contains."""

    @property
    def num_evictable(self) -> int:
        return len(self.pages) - self.num_protected

    @property
    def is_candidate(self) -> bool:
        """Whether pages could be evicted from this edge now, from its tail."""
        return not self.children and len(self.pages) > self.num_protected

    def count_protected(self) -> int:
        """What `num_protected` must be, given pins and children."""
        return len(self.pages) if self.num_locked_children else max(self.pins, default=0)


@dataclass(slots=True, eq=False)
class Namespace:
    """A tree of its own: nothing is shared across namespaces."""

    name: str
    quota: int | None
    """Pages it may keep before they are evicted ahead of everybody else's."""
    num_pages: int = 0
    num_protected: int = 0
    queue: EvictionQueue[Node] = field(default_factory=EvictionQueue[Node])
    """Its own eviction candidates; used only where there is a quota."""
    root: Node = field(init=False)

    def __post_init__(self) -> None:
        self.root = Node(self, None, b"", np.empty(0, dtype=np.int32))

    @property
    def excess(self) -> int:
        """Pages above the quota."""
        return 0 if self.quota is None else max(0, self.num_pages - self.quota)

    @property
    def unused(self) -> bool:
        return not self.root.children and not self.root.pins


def num_common_pages(a: bytes, b: bytes, page_bytes: int) -> int:
    """Whole pages at the start that `a` and `b` have in common."""
    low, high = 0, min(len(a), len(b)) // page_bytes
    while low < high:
        middle = (low + high + 1) // 2
        if a[low * page_bytes : middle * page_bytes] == b[low * page_bytes : middle * page_bytes]:
            low = middle
        else:
            high = middle - 1
    return low


def split(node: Node, offset: int, page_bytes: int) -> Node:
    """Cut an edge after `offset` pages, strictly inside it; return the new upper node.

    `node` stays the lower one, with its children and its tail. Receipts go to the half they end in,
    and what they protect is the same before and after.
    """
    assert node.parent is not None and 0 < offset < len(node.pages)
    cut = offset * page_bytes
    upper = Node(node.namespace, node.parent, node.tokens[:cut], node.pages[:offset])
    node.parent.children[upper.tokens[:page_bytes]] = upper
    node.parent = upper
    node.tokens = node.tokens[cut:]
    node.pages = node.pages[offset:]
    upper.children[node.tokens[:page_bytes]] = node
    pins, node.pins = node.pins, {}
    for pin, receipts in pins.items():
        home, shift = (upper, 0) if pin <= offset else (node, offset)
        home.pins[pin - shift] = receipts
        for receipt in receipts:
            receipt.node, receipt.offset = home, pin - shift
    upper.num_protected = min(node.num_protected, offset)
    node.num_protected -= upper.num_protected
    upper.num_locked_children = int(node.num_protected > 0)
    return upper


def path_pages(receipt: Receipt) -> NDArray[np.int32]:
    """The pages that a receipt protects, from the root down; not to be written to."""
    parts = [receipt.node.pages[: receipt.offset]]
    node = receipt.node.parent
    while node is not None and node.parent is not None:
        parts.append(node.pages)
        node = node.parent
    return parts[0] if len(parts) == 1 else np.concatenate(parts[::-1])
