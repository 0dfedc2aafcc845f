"""The books of tree and leases, recounted from scratch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jaxsgl.cache.errors import AccountingError
from jaxsgl.cache.lease import Lease
from jaxsgl.cache.node import Namespace, Node, path_pages
from jaxsgl.cache.page_pool import CACHE, PagePool
from jaxsgl.cache.radix_tree import RadixTree


def check_tree(tree: RadixTree) -> NDArray[np.int32]:
    """Return every page in the tree; raise AccountingError naming the first discrepancy."""
    parts = [np.empty(0, dtype=np.int32)]
    num_protected = num_receipts = 0
    for name, namespace in tree.namespaces.items():
        nodes = _nodes(namespace.root)
        for node in nodes:
            _check_edge(node, tree.page_bytes)
            _check_protection(node)
            _check_queues(node, tree)
            num_receipts += sum(len(receipts) for receipts in node.pins.values())
        held = [node.pages for node in nodes]
        protected = sum(node.num_protected for node in nodes)
        _check_namespace(tree, name, namespace, sum(map(len, held)), protected)
        parts += held
        num_protected += protected
    pages = np.concatenate(parts)
    if len(np.unique(pages)) != len(pages):
        raise AccountingError(f"a page is in the tree twice: {np.sort(pages).tolist()}")
    counted = (len(pages), num_protected, num_receipts)
    booked = (tree.num_pages, tree.num_protected, tree.num_receipts)
    if counted != booked:
        raise AccountingError(f"pages, protected, locks are {counted}, booked as {booked}")
    return pages


def check_lease(lease: Lease, pool: PagePool, tree: RadixTree) -> int:
    """Count the private pages of an open lease; raise AccountingError if its row is wrong."""
    home = tree.namespaces.get(lease.namespace)
    receipt = lease.receipt
    path = path_pages(receipt)
    root = _root(receipt.node)
    if home is None or root is not home.root or not receipt.live:
        raise AccountingError(f"lease {lease.lease_id} holds a lock outside its namespace")
    if receipt not in receipt.node.pins.get(receipt.offset, ()):
        raise AccountingError(f"the lock of lease {lease.lease_id} is not where it says")
    if len(path) != lease.num_locked_pages:
        raise AccountingError(
            f"lease {lease.lease_id} locks {len(path)} pages, not {lease.num_locked_pages}"
        )
    owners = pool.owners(lease.pages)
    shared = np.flatnonzero(owners != lease.lease_id)
    if (owners[shared] != CACHE).any() or (shared >= len(path)).any():
        raise AccountingError(f"lease {lease.lease_id} has pages of {np.unique(owners).tolist()}")
    if not np.array_equal(lease.pages[shared], path[shared]):
        raise AccountingError(f"the row of lease {lease.lease_id} is not on its path in the tree")
    return len(lease.pages) - len(shared)


def _nodes(root: Node) -> list[Node]:
    """A node and everything below it."""
    nodes = [root]
    for node in nodes:
        nodes.extend(node.children.values())
    return nodes


def _root(node: Node) -> Node:
    while node.parent is not None:
        node = node.parent
    return node


def _check_edge(node: Node, page_bytes: int) -> None:
    if len(node.tokens) != len(node.pages) * page_bytes:
        raise AccountingError(f"{len(node.tokens)} bytes of tokens for {len(node.pages)} pages")
    if (node.parent is None) != (len(node.pages) == 0):
        raise AccountingError("only roots have an empty edge")
    for first_page, child in node.children.items():
        if child.parent is not node or child.namespace is not node.namespace:
            raise AccountingError(f"pages {child.pages.tolist()} hang in the wrong place")
        if child.tokens[:page_bytes] != first_page:
            raise AccountingError(f"pages {child.pages.tolist()} are filed under other tokens")


def _check_protection(node: Node) -> None:
    for offset, receipts in node.pins.items():
        for receipt in receipts:
            if receipt.node is not node or receipt.offset != offset or not receipt.live:
                raise AccountingError(f"a lock at {node.pages.tolist()} belongs elsewhere")
        # A path that ends where an edge begins is one that ends in the edge before.
        if not receipts or not (0 < offset <= len(node.pages) or node.parent is None):
            raise AccountingError(f"a lock {offset} pages into {node.pages.tolist()}")
    num_locked_children = sum(child.num_protected > 0 for child in node.children.values())
    if node.num_locked_children != num_locked_children:
        raise AccountingError(
            f"{num_locked_children} locked children, booked as {node.num_locked_children}"
        )
    if node.num_protected != node.count_protected():
        raise AccountingError(
            f"{node.num_protected} pages of {node.pages.tolist()} protected, "
            f"not {node.count_protected()}"
        )


def _check_queues(node: Node, tree: RadixTree) -> None:
    """Every candidate waits, under no larger key than it has, wherever it may be looked for."""
    if not node.is_candidate:
        return
    key = tree.policy.key(int(node.pages[-1]))
    queues = [tree.queue] if node.namespace.quota is None else [tree.queue, node.namespace.queue]
    for queue in queues:
        queued_key = queue.queued_key(node)
        if queued_key is None or queued_key > key:
            raise AccountingError(
                f"pages {node.pages.tolist()} with key {key} are queued under {queued_key}"
            )


def _check_namespace(
    tree: RadixTree, name: str, namespace: Namespace, num_pages: int, num_protected: int
) -> None:
    if (namespace.num_pages, namespace.num_protected) != (num_pages, num_protected):
        raise AccountingError(
            f"namespace {name!r} has {num_pages} pages, {num_protected} protected, "
            f"booked as {namespace.num_pages}, {namespace.num_protected}"
        )
    if namespace.name != name or namespace.unused:
        raise AccountingError(f"namespace {name!r} should not be here")
    if (namespace.excess > 0) != (tree.over_quota.get(name) is namespace):
        raise AccountingError(f"namespace {name!r} is {namespace.excess} pages above its quota")
