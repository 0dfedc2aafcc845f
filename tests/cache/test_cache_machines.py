"""The tree and the manager hold their promises under any sequence of operations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from jaxsgl.cache.eviction import Lru
from jaxsgl.cache.radix_tree import RadixTree
from tests.cache.machines import CacheMachine, TreeMachine, page_patterns, sequence
from tests.cache.tree_model import shape

QUICK = settings(max_examples=600, stateful_step_count=40, deadline=None, print_blob=True)
LONG = settings(QUICK, max_examples=20_000)

machines = pytest.mark.parametrize("machine", [TreeMachine, CacheMachine])


@machines
def test_any_sequence_of_operations(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=QUICK)


@pytest.mark.long
@pytest.mark.timeout(3600)
@machines
def test_any_sequence_of_operations_at_length(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=LONG)


@settings(QUICK, max_examples=200)
@given(kinds=st.lists(page_patterns, max_size=6), order=st.randoms(use_true_random=False))
def test_order_of_insertion_does_not_shape_the_tree(kinds, order) -> None:
    shuffled = list(kinds)
    order.shuffle(shuffled)
    assert shape(tree_of(kinds)) == shape(tree_of(shuffled))


def tree_of(kinds: list[list[int]]) -> RadixTree:
    tree = RadixTree(2, Lru(100))
    next_page = 0
    for each in kinds:
        tokens = np.array(sequence(each, 2), dtype=np.int32).tobytes()
        receipt, _ = tree.lock("", b"")
        pages = np.arange(next_page, next_page + len(each), dtype=np.int32)
        tree.insert(receipt, tokens, pages)
        tree.unlock(receipt)
        next_page += len(each)
    return tree
