"""The tree alone: where edges part, what locks protect, what goes first. A page has two tokens."""

import numpy as np
import pytest

from jaxsgl.cache.check import check_tree
from jaxsgl.cache.errors import AccountingError, LeaseError
from jaxsgl.cache.eviction import Lru
from jaxsgl.cache.node import Receipt, num_common_pages
from jaxsgl.cache.radix_tree import RadixTree

A, B, C, D = (1, 1), (1, 2), (2, 1), (2, 2)


def as_bytes(*pages: tuple[int, int]) -> bytes:
    return np.array(pages, dtype=np.int32).tobytes()


def new_tree(**quotas: int) -> RadixTree:
    return RadixTree(2, Lru(10_000), quotas=quotas)


def put(
    tree: RadixTree, *kinds: tuple[int, int], start: int, namespace: str = ""
) -> tuple[Receipt, int]:
    """Insert pages numbered from `start` on; the receipt, and how many the tree had already."""
    receipt, matched = tree.lock(namespace, as_bytes(*kinds))
    rest = kinds[len(matched) :]
    pages = np.arange(start + len(matched), start + len(kinds), dtype=np.int32)
    present = tree.insert(receipt, as_bytes(*rest), pages)
    check_tree(tree)
    return receipt, len(matched) + present


def add(tree: RadixTree, *kinds: tuple[int, int], start: int, namespace: str = "") -> None:
    receipt, _ = put(tree, *kinds, start=start, namespace=namespace)
    tree.unlock(receipt)
    check_tree(tree)


def locked(tree: RadixTree, *kinds: tuple[int, int]) -> tuple[Receipt, list[int]]:
    receipt, pages = tree.lock("", as_bytes(*kinds))
    check_tree(tree)
    return receipt, pages.tolist()


def test_match_ends_at_whole_pages_and_inside_edges() -> None:
    tree = new_tree()
    add(tree, A, B, C, start=10)
    assert tree.match("", as_bytes(A, B, C, D)) == 3
    assert tree.match("", as_bytes(A, B)) == 2
    assert tree.match("", as_bytes(A, D)) == 1
    assert tree.match("", as_bytes(B)) == 0
    assert tree.match("", b"") == 0
    assert tree.match("elsewhere", as_bytes(A)) == 0


def test_a_look_up_and_a_lock_split_nothing() -> None:
    tree = new_tree()
    add(tree, A, B, C, start=10)
    tree.match("", as_bytes(A))
    assert locked(tree, A)[1] == [10]
    (edge,) = tree.namespaces[""].root.children.values()
    assert edge.pages.tolist() == [10, 11, 12]


def test_insertion_splits_where_tokens_part() -> None:
    tree = new_tree()
    add(tree, A, B, C, start=10)
    add(tree, A, D, start=20)
    assert locked(tree, A, B, C)[1] == [10, 11, 12]
    assert locked(tree, A, D)[1] == [10, 21]
    (upper,) = tree.namespaces[""].root.children.values()
    assert upper.pages.tolist() == [10]
    assert [child.pages.tolist() for child in upper.children.values()] == [[11, 12], [21]]


def test_insertion_behind_a_leaf_extends_its_edge() -> None:
    tree = new_tree()
    receipt, _ = put(tree, A, start=10)
    assert tree.insert(receipt, as_bytes(B, C), np.array([11, 12], dtype=np.int32)) == 0
    check_tree(tree)
    (edge,) = tree.namespaces[""].root.children.values()
    assert edge.pages.tolist() == [10, 11, 12]
    assert tree.num_protected == 3


def test_insertion_takes_only_what_is_missing() -> None:
    tree = new_tree()
    receipt, _ = tree.lock("", as_bytes(A, B, C))
    add(tree, A, B, start=10)
    pages = np.array([20, 21, 22], dtype=np.int32)
    assert tree.insert(receipt, as_bytes(A, B, C), pages) == 2
    check_tree(tree)
    assert locked(tree, A, B, C)[1] == [10, 11, 22]


def test_the_tree_keeps_its_own_copy_of_page_ids() -> None:
    tree = new_tree()
    receipt, _ = tree.lock("", b"")
    pages = np.array([5, 6], dtype=np.int32)
    tree.insert(receipt, as_bytes(A, B), pages)
    pages[:] = 9
    assert locked(tree, A, B)[1] == [5, 6]


def test_a_lock_inside_an_edge_protects_the_pages_up_to_it() -> None:
    tree = new_tree()
    add(tree, A, B, C, start=10)
    receipt, _ = locked(tree, A)
    assert (tree.num_protected, tree.num_evictable) == (1, 2)
    assert sorted(tree.evict(99).tolist()) == [11, 12]
    check_tree(tree)
    tree.unlock(receipt)
    assert tree.evict(99).tolist() == [10]
    assert tree.namespaces == {}


def test_locks_survive_a_split_above_and_below_them() -> None:
    tree = new_tree()
    add(tree, A, B, C, start=10)
    shallow, deep = locked(tree, A)[0], locked(tree, A, B, C)[0]
    add(tree, A, B, D, start=20)
    assert tree.num_protected == 3
    tree.unlock(deep)
    check_tree(tree)
    assert tree.num_protected == 1
    tree.unlock(shallow)
    check_tree(tree)
    assert tree.num_protected == 0


def test_a_lock_is_given_back_once() -> None:
    tree = new_tree()
    receipt, _ = locked(tree, A)
    tree.unlock(receipt)
    with pytest.raises(LeaseError):
        tree.unlock(receipt)
    with pytest.raises(LeaseError):
        tree.insert(receipt, as_bytes(A), np.array([1], dtype=np.int32))
    assert tree.num_receipts == 0


def test_eviction_takes_the_least_recent_tail_page_by_page() -> None:
    tree = new_tree()
    add(tree, A, B, start=10)
    add(tree, C, D, start=20)
    tree.unlock(locked(tree, A, B)[0])
    assert tree.evict(1).tolist() == [21]
    assert tree.match("", as_bytes(C, D)) == 1
    assert tree.evict(2).tolist() == [20, 11]
    check_tree(tree)


def test_reuse_of_the_head_of_an_edge_leaves_its_tail_old() -> None:
    tree = new_tree()
    add(tree, A, B, C, start=10)
    add(tree, D, start=20)
    tree.unlock(locked(tree, A)[0])
    assert sorted(tree.evict(3).tolist()) == [11, 12, 20]
    assert tree.match("", as_bytes(A)) == 1


def test_parents_go_after_their_children() -> None:
    tree = new_tree()
    add(tree, A, B, start=10)
    add(tree, A, C, start=20)
    assert [tree.evict(1).tolist() for _ in range(4)] == [[11], [21], [10], []]
    check_tree(tree)


def test_namespaces_share_nothing_and_vanish_when_empty() -> None:
    tree = new_tree()
    add(tree, A, start=10, namespace="x")
    add(tree, A, start=20, namespace="y")
    assert tree.num_pages == 2
    tree.evict(1)
    assert list(tree.namespaces) == ["y"]
    receipt, pages = tree.lock("x", as_bytes(A))
    assert pages.tolist() == []
    tree.unlock(receipt)
    assert list(tree.namespaces) == ["y"]


def test_namespaces_above_their_quota_pay_first_and_down_to_the_same_excess() -> None:
    tree = new_tree(x=1, y=2)
    add(tree, A, B, C, D, A, start=10, namespace="x")
    add(tree, A, B, C, D, start=20, namespace="y")
    add(tree, A, start=30, namespace="z")
    tree.unlock(tree.lock("x", as_bytes(A, B, C, D, A))[0])
    freed = [tree.evict(1).tolist()[0] for _ in range(6)]
    check_tree(tree)
    assert {tree.namespaces[name].num_pages for name in "xy"} == {1, 2}
    assert all(page < 30 for page in freed)
    # Nobody is above a quota now: the least recent goes, which is the rest of y.
    assert tree.over_quota == {}
    assert tree.evict(1).tolist() == [21]


def test_a_default_quota_holds_for_every_other_namespace() -> None:
    tree = RadixTree(2, Lru(100), quotas={"free": 9}, default_quota=1)
    add(tree, A, start=10, namespace="free")
    add(tree, A, B, start=20, namespace="someone")
    assert tree.evict(1).tolist() == [21]


def test_a_locked_namespace_above_its_quota_does_not_stop_eviction() -> None:
    tree = new_tree(x=0)
    put(tree, A, B, start=10, namespace="x")
    add(tree, C, start=20, namespace="y")
    assert tree.evict(9).tolist() == [20]
    check_tree(tree)


def test_eviction_looks_at_few_leaves() -> None:
    tree = new_tree()
    for leaf in range(2_000):
        add_quietly(tree, leaf)
    asked = []
    key = tree.policy.key
    tree.policy.key = lambda page: asked.append(page) or key(page)
    assert len(tree.evict(100)) == 100
    assert len(asked) <= 3 * 100


def add_quietly(tree: RadixTree, leaf: int) -> None:
    receipt, _ = tree.lock("", b"")
    tree.insert(receipt, as_bytes((leaf, 0)), np.array([leaf], dtype=np.int32))
    tree.unlock(receipt)


@pytest.mark.parametrize("num_common", range(6))
def test_num_common_pages(num_common: int) -> None:
    a = np.arange(10, dtype=np.int32)
    b = a.copy()
    b[2 * num_common :] += 1
    assert num_common_pages(a.tobytes(), b.tobytes(), 8) == num_common
    assert num_common_pages(a.tobytes(), b[: 2 * num_common].tobytes(), 8) == num_common


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree, edge: setattr(edge, "num_protected", 0),
        lambda tree, edge: setattr(edge, "tokens", edge.tokens[:-4]),
        lambda tree, edge: setattr(edge, "pages", edge.pages[[0, 0, 0]]),
        lambda tree, edge: setattr(edge, "parent", edge),
        lambda tree, edge: setattr(edge, "num_locked_children", 1),
        lambda tree, edge: edge.pins.clear(),
        lambda tree, edge: tree.queue.forget(edge),
        lambda tree, edge: setattr(tree, "num_pages", 2),
        lambda tree, edge: setattr(tree, "num_receipts", 0),
        lambda tree, edge: setattr(edge.namespace, "num_pages", 4),
        lambda tree, edge: tree.over_quota.clear(),
    ],
    ids=[
        "protection",
        "tokens",
        "duplicate page",
        "parent",
        "locked children",
        "pins",
        "queue",
        "page count",
        "lock count",
        "namespace count",
        "over quota",
    ],
)
def test_the_recount_finds_spoiled_books(spoil) -> None:
    tree = RadixTree(2, Lru(100), default_quota=1)
    add(tree, A, B, C, start=10)
    locked(tree, A)
    (edge,) = tree.namespaces[""].root.children.values()
    spoil(tree, edge)
    with pytest.raises(AccountingError):
        check_tree(tree)
