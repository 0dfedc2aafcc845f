"""A page has one owner at a time, and only its owner can give it away."""

import numpy as np
import pytest

from jaxsgl.cache.errors import AccountingError
from jaxsgl.cache.page_pool import CACHE, PagePool
from jaxsgl.step import SCRATCH_PAGE


def pages(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def test_hands_out_every_page_once_and_never_the_scratch_page() -> None:
    pool = PagePool(5)
    taken = pool.take(pool.capacity, owner=1)
    assert taken.dtype == np.int32
    assert sorted(taken.tolist()) == [page for page in range(5) if page != SCRATCH_PAGE]
    assert pool.num_free == 0


def test_take_more_than_there_is_changes_nothing() -> None:
    pool = PagePool(4)
    with pytest.raises(ValueError, match="4 pages wanted, 3 are free"):
        pool.take(4, owner=1)
    assert pool.num_free == 3
    pool.check()


def test_freed_pages_are_taken_again() -> None:
    pool = PagePool(4)
    pool.free(pool.take(3, owner=1), 1)
    assert sorted(pool.take(3, owner=2).tolist()) == [1, 2, 3]
    assert pool.owners(pages(1, 2, 3)).tolist() == [2, 2, 2]


def test_transfer() -> None:
    pool = PagePool(4)
    taken = pool.take(2, owner=1)
    pool.transfer(taken[:1], 1, CACHE)
    assert pool.owned_by(CACHE).tolist() == taken[:1].tolist()
    pool.free(taken[:1], CACHE)
    pool.free(taken[1:], 1)
    assert pool.num_free == pool.capacity
    pool.check()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (pages(3), "page 3 is owned by 0, not 1"),
        (pages(1, 2), "page 2 is owned by 2, not 1"),
        (pages(SCRATCH_PAGE), "page 0 is owned by -2, not 1"),
        (pages(1, 1), "named twice"),
    ],
    ids=["double free", "foreign page", "scratch page", "same page twice"],
)
def test_a_wrong_free_raises_and_changes_nothing(wrong: np.ndarray, message: str) -> None:
    pool = PagePool(4)
    assert pool.take(1, owner=1).tolist() == [1]
    assert pool.take(1, owner=2).tolist() == [2]
    with pytest.raises(AccountingError, match=message):
        pool.free(wrong, 1)
    with pytest.raises(AccountingError, match=message):
        pool.transfer(wrong, 1, CACHE)
    assert pool.num_free == 1
    assert pool.owners(pages(1, 2)).tolist() == [1, 2]
    pool.check()


def test_check_finds_a_page_that_is_free_and_owned() -> None:
    pool = PagePool(4)
    pool._owner[3] = 7
    with pytest.raises(AccountingError, match="free stack"):
        pool.check()


def test_check_finds_an_owner_of_the_scratch_page() -> None:
    pool = PagePool(4)
    pool._owner[SCRATCH_PAGE] = 7
    with pytest.raises(AccountingError, match="scratch"):
        pool.check()


def test_a_pool_has_at_least_one_page_to_give() -> None:
    with pytest.raises(ValueError, match="num_pages=1"):
        PagePool(1)
