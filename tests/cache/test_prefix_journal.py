"""A journal read now and then always adds up to what is in the tree."""

from __future__ import annotations

import random

import numpy as np

from jaxsgl.cache.lease import Lease
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.cache.node import Node
from jaxsgl.cache.page_hash import HASH_BYTES, page_hashes, root_hash, split_hashes
from jaxsgl.cache.prefix_journal import PrefixJournal

PAGE_SIZE = 2
PAGE_BYTES = 4 * PAGE_SIZE


def names_in_tree(cache: KVCacheManager) -> set[bytes]:
    """Recounted from scratch."""
    names: set[bytes] = set()

    def walk(node: Node, name: bytes) -> None:
        below = [*page_hashes(name, node.tokens, PAGE_BYTES)]
        names.update(below)
        for child in node.children.values():
            walk(child, below[-1] if below else name)

    for namespace in cache._tree.namespaces.values():
        walk(namespace.root, root_hash(namespace.name))
    return names


class Life:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.cache = KVCacheManager(self.rng.randint(8, 20), PAGE_SIZE)
        self.cache.journal = PrefixJournal()
        self.known: set[bytes] = set()
        self.open: list[tuple[Lease, np.ndarray]] = []

    def read(self) -> None:
        entry = self.cache.journal.take()
        if entry is not None:
            if entry.cleared:
                self.known.clear()
            assert not self.known & set(entry.added) and set(entry.dropped) <= self.known
            self.known = (self.known - set(entry.dropped)) | set(entry.added)
        assert self.known == names_in_tree(self.cache)

    def event(self) -> None:
        rng, cache = self.rng, self.cache
        match rng.choice(["open", "open", "publish", "close", "close", "lose", "clear", "reset"]):
            case "open":
                tokens = np.array([rng.randint(1, 2) for _ in range(rng.randint(1, 12))], np.int32)
                lease = cache.open(rng.choice(["", "other"]), tokens)
                if cache.grow(lease, len(tokens)) is None:
                    cache.close(lease, None)
                else:
                    self.open.append((lease, tokens))
            case "publish" if self.open:
                lease, tokens = rng.choice(self.open)
                cache.publish(lease, tokens)
            case "close" if self.open:
                lease, tokens = self.open.pop(rng.randrange(len(self.open)))
                cache.close(lease, tokens)
            case "lose" if self.open:
                cache.close(self.open.pop()[0], None)
            case "clear" if rng.random() < 0.3:
                cache.clear()
            case "reset" if rng.random() < 0.1:
                cache.reset()
                for lease, _ in self.open:
                    cache.close(lease, None)
                self.open.clear()


def test_readings_add_up_to_the_tree():
    num_names = 0
    for seed in range(60):
        life = Life(seed)
        for _ in range(80):
            life.event()
            if life.rng.random() < 0.5:
                life.read()
                num_names += len(life.known)
        life.cache.check()
    assert num_names > 1000  # the trees were not just empty


def test_a_name_depends_on_everything_before_it():
    tokens = np.array([1, 2, 3, 4, 5], np.int32).tobytes()
    one, two = page_hashes(root_hash("a"), tokens, PAGE_BYTES)
    assert len(one) == len(two) == HASH_BYTES and one != two
    assert [*page_hashes(one, tokens[PAGE_BYTES:], PAGE_BYTES)] == [two]
    assert one not in page_hashes(root_hash("b"), tokens, PAGE_BYTES)
    assert two not in page_hashes(root_hash("a"), tokens[PAGE_BYTES:], PAGE_BYTES)
    assert split_hashes(one + two) == [one, two]
