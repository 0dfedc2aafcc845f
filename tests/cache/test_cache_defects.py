"""The checks of this folder find every mistake they are meant to find."""

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from jaxsgl.cache.errors import AccountingError, LeaseError
from tests.cache.defects import DEFECTS, Defect
from tests.cache.machines import CacheMachine

each_defect = pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
FOUND = (AssertionError, AccountingError, LeaseError)
BROKEN = (*FOUND, KeyError)
"""A tree that is in disorder may also break down before it is checked."""


@each_defect
def test_replay_passes_without_the_defect(defect: Defect) -> None:
    defect.replay()


@each_defect
def test_replay_finds_the_defect(defect: Defect, monkeypatch: pytest.MonkeyPatch) -> None:
    defect.seed(monkeypatch)
    with pytest.raises(FOUND):
        defect.replay()


@pytest.mark.long
@each_defect
def test_machine_finds_the_defect(defect: Defect, monkeypatch: pytest.MonkeyPatch) -> None:
    defect.seed(monkeypatch)
    search = settings(
        max_examples=20_000,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
    )
    with pytest.raises(BROKEN):
        run_state_machine_as_test(CacheMachine, settings=search)
