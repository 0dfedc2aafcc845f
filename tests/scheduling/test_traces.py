"""Thousands of random lives, and proof that the checks in them find what they are meant to find."""

import pytest

from jaxsgl.cache.errors import AccountingError, LeaseError
from jaxsgl.scheduling.scheduler import Scheduler, SchedulingError
from tests.scheduling.defects import DEFECTS
from tests.scheduling.trace import Trace

FOUND = (AssertionError, SchedulingError, AccountingError, LeaseError)


def run_traces(first: int, count: int) -> None:
    for seed in range(first, first + count):
        try:
            # Recounting everything after every event costs most of the time: one in eight.
            Trace(seed).run(check_always=seed % 8 == 0)
        except Exception as error:
            error.add_note(f"replay with Trace({seed}).run(check_always=True)")
            raise


@pytest.mark.parametrize("first", range(0, 20_000, 5_000))
def test_random_traces(first: int) -> None:
    run_traces(first, 5_000)


@pytest.mark.long
def test_more_random_traces() -> None:
    run_traces(20_000, 100_000)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_each_seeded_defect_is_found(defect: type[Scheduler]) -> None:
    with pytest.raises(FOUND):
        for seed in range(400):
            Trace(seed, defect).run(check_always=True)
