"""A radix tree of token prefixes whose values are KV pages.

Edges hold whole pages, at least one. A look-up never changes the tree: it may end inside an edge,
and a lock may too, protecting the edge's pages up to that depth only. Edges are split where an
insertion parts from them, extended where it continues a leaf, and evicted from the tail of a leaf,
page by page.

Idea of a radix tree over KV pages with eviction at the leaves: RadixAttention in "SGLang: Efficient
Execution of Structured Language Model Programs" (arXiv 2312.07104), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from jaxsgl.cache.errors import LeaseError
from jaxsgl.cache.eviction import EvictionQueue, Lru
from jaxsgl.cache.node import (
    TOKEN_BYTES,
    Namespace,
    Node,
    Receipt,
    num_common_pages,
    path_pages,
    split,
)


class RadixTree:
    """Which pages hold which prefixes, in which namespace, and who needs them to stay.

    Tokens come as the bytes of an int32 array of whole pages. The tree is told of pages and returns
    them; it knows nothing of who owns them otherwise. Attributes are for reading only.
    """

    def __init__(
        self,
        page_size: int,
        policy: Lru,
        *,
        quotas: Mapping[str, int] | None = None,
        default_quota: int | None = None,
    ) -> None:
        """`quotas` are pages by namespace; others have `default_quota`, None being no limit."""
        self.page_bytes = page_size * TOKEN_BYTES
        self.policy = policy
        self.quotas = dict(quotas or {})
        self.default_quota = default_quota
        self.namespaces: dict[str, Namespace] = {}
        """Those that hold a page or a receipt."""
        self.over_quota: dict[str, Namespace] = {}
        self.queue: EvictionQueue[Node] = EvictionQueue()
        """Eviction candidates of all namespaces."""
        self.num_pages = 0
        self.num_protected = 0
        """Pages on the path of a live receipt."""
        self.num_receipts = 0
        """Locks not yet given back."""

    @property
    def num_evictable(self) -> int:
        return self.num_pages - self.num_protected

    def match(self, namespace: str, tokens: bytes) -> int:
        """How many leading pages of `tokens` are cached. Changes nothing, not even recency."""
        home = self.namespaces.get(namespace)
        return 0 if home is None else self._descend(home.root, 0, tokens)[2]

    def touch(self, namespace: str, tokens: bytes) -> None:
        """Make the longest cached prefix of `tokens` the most recent; it is not a use of it."""
        home = self.namespaces.get(namespace)
        if home is not None:
            node, offset, _ = self._descend(home.root, 0, tokens)
            self.policy.refresh(path_pages(Receipt(node, offset, 0)))

    def lock(
        self, namespace: str, tokens: bytes, priority: int = 0
    ) -> tuple[Receipt, NDArray[np.int32]]:
        """Protect the longest cached prefix of `tokens`, maybe empty, and return its pages."""
        home = self.namespaces.get(namespace)
        if home is None:
            quota = self.quotas.get(namespace, self.default_quota)
            home = self.namespaces[namespace] = Namespace(namespace, quota)
        node, offset, _ = self._descend(home.root, 0, tokens)
        receipt = Receipt(node, offset, priority)
        self._pin(receipt)
        self.num_receipts += 1
        pages = path_pages(receipt)
        self.policy.use(pages, priority)
        return receipt, pages

    def insert(self, receipt: Receipt, tokens: bytes, pages: NDArray[np.int32]) -> int:
        """Cache `pages`, the KV of `tokens`, behind the path of a receipt, which locks them too.

        Returns how many leading pages the tree had already under the same tokens: those of `pages`
        are not taken, and the receipt protects the tree's own instead. The rest belongs to the
        tree.
        """
        self._require(receipt)
        node, offset, num_present = self._descend(receipt.node, receipt.offset, tokens)
        if num_present < len(pages):
            if offset < len(node.pages):
                node = split(node, offset, self.page_bytes)
            new_pages = pages[num_present:]
            node = self._append(node, tokens[num_present * self.page_bytes :], new_pages)
            offset = len(node.pages)
            self.policy.add(new_pages, receipt.priority)
        self._move(receipt, node, offset)
        return num_present

    def unlock(self, receipt: Receipt) -> None:
        """Give a lock back. Raises LeaseError if that was done already."""
        self._require(receipt)
        receipt.live = False
        self.num_receipts -= 1
        self.policy.refresh(path_pages(receipt))
        self._unpin(receipt, receipt.node, receipt.offset)
        self._drop_if_unused(receipt.node.namespace)

    def evict(self, num_pages: int) -> NDArray[np.int32]:
        """Drop `num_pages` unprotected pages, or all there are if fewer, and return them.

        First from the namespace furthest above its quota, until none is above; then in the order of
        the policy over all namespaces.
        """
        freed = [np.empty(0, dtype=np.int32)]
        num_wanted = min(num_pages, self.num_evictable)
        while num_wanted > 0:
            queue, limit = self._next_queue()
            node = self._pop_candidate(queue)
            freed.append(self._trim(node, min(limit, num_wanted)))
            num_wanted -= len(freed[-1])
        return np.concatenate(freed)

    # -- Walking and growing.

    def _descend(self, node: Node, offset: int, tokens: bytes) -> tuple[Node, int, int]:
        """Follow `tokens` from `offset` pages into the edge of `node`.

        Returns the node and the offset in its edge where tree and tokens part, and the pages
        walked.
        """
        walked = 0
        while True:
            edge = node.tokens[offset * self.page_bytes :]
            ahead = tokens[walked : walked + len(edge)]
            if ahead != edge:
                common = num_common_pages(edge, ahead, self.page_bytes)
                return node, offset + common, walked // self.page_bytes + common
            walked += len(edge)
            child = node.children.get(tokens[walked : walked + self.page_bytes])
            if child is None:
                return node, len(node.pages), walked // self.page_bytes
            node, offset = child, 0

    def _append(self, node: Node, tokens: bytes, pages: NDArray[np.int32]) -> Node:
        """Put new pages behind a node, into its own edge if it is a leaf; return their node."""
        self._count_pages(node.namespace, len(pages))
        if node.parent is not None and not node.children:
            node.tokens += tokens
            node.pages = np.concatenate((node.pages, pages))
            return node
        child = Node(node.namespace, node, tokens, pages.copy())
        node.children[tokens[: self.page_bytes]] = child
        return child

    def _count_pages(self, namespace: Namespace, change: int) -> None:
        self.num_pages += change
        namespace.num_pages += change
        if namespace.excess:
            self.over_quota[namespace.name] = namespace
        else:
            self.over_quota.pop(namespace.name, None)

    def _drop_if_unused(self, namespace: Namespace) -> None:
        if namespace.unused:
            del self.namespaces[namespace.name]

    # -- Protection.

    def _require(self, receipt: Receipt) -> None:
        if not receipt.live:
            raise LeaseError("this lock was given back before")

    def _pin(self, receipt: Receipt) -> None:
        receipt.node.pins.setdefault(receipt.offset, set()).add(receipt)
        self._protect(receipt.node)

    def _unpin(self, receipt: Receipt, node: Node, offset: int) -> None:
        receipts = node.pins[offset]
        receipts.remove(receipt)
        if not receipts:
            del node.pins[offset]
        self._protect(node)

    def _move(self, receipt: Receipt, node: Node, offset: int) -> None:
        old_node, old_offset = receipt.node, receipt.offset
        if node is old_node and offset == old_offset:
            return
        # The new pin first, so that nothing on the way is unprotected in between.
        receipt.node, receipt.offset = node, offset
        self._pin(receipt)
        self._unpin(receipt, old_node, old_offset)

    def _protect(self, node: Node | None) -> None:
        """Recount the protected pages of a node, and upwards as far as that matters."""
        while node is not None:
            before, after = node.num_protected, node.count_protected()
            if before == after:
                return
            node.num_protected = after
            node.namespace.num_protected += after - before
            self.num_protected += after - before
            self._offer(node)
            if (before > 0) == (after > 0):
                return
            node = node.parent
            if node is not None:
                node.num_locked_children += 1 if after else -1

    # -- Eviction.

    def _offer(self, node: Node) -> None:
        """Queue a node for eviction if pages could be taken from it."""
        if not node.is_candidate:
            return
        key = self.policy.key(int(node.pages[-1]))
        self.queue.offer(node, key)
        if node.namespace.quota is not None:
            node.namespace.queue.offer(node, key)

    def _next_queue(self) -> tuple[EvictionQueue[Node], int]:
        """Where the next pages come from, and how many of them before this must be asked again."""
        over = [n for n in self.over_quota.values() if n.num_pages > n.num_protected]
        if not over:
            return self.queue, self.num_evictable
        over.sort(key=lambda namespace: namespace.excess, reverse=True)
        level = over[1].excess if len(over) > 1 else 0
        return over[0].queue, max(1, over[0].excess - level)

    def _pop_candidate(self, queue: EvictionQueue[Node]) -> Node:
        """The node whose tail goes first. It exists: below any unprotected page is such a tail."""
        while entry := queue.pop():
            node, queued_key = entry
            if not node.is_candidate:
                continue
            key = self.policy.key(int(node.pages[-1]))
            if key <= queued_key:
                return node
            queue.offer(node, key)
        raise AssertionError("evictable pages, and no node to take them from")

    def _trim(self, node: Node, limit: int) -> NDArray[np.int32]:
        """Drop at most `limit` equally old pages from the tail of an edge; return them."""
        tail = node.pages[node.num_protected :]
        num_dropped = min(limit, self.policy.num_alike(tail))
        dropped = tail[len(tail) - num_dropped :]
        self._count_pages(node.namespace, -num_dropped)
        if num_dropped < len(node.pages):
            node.pages = node.pages[:-num_dropped]
            node.tokens = node.tokens[: len(node.pages) * self.page_bytes]
            self._offer(node)
        else:
            self._remove(node)
        return dropped

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.tokens[: self.page_bytes]]
        self.queue.forget(node)
        node.namespace.queue.forget(node)
        self._offer(node.parent)
        self._drop_if_unused(node.namespace)
