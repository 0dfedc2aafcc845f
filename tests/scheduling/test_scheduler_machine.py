import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.scheduling.scheduler_machine import SchedulerMachine


def run(max_examples: int) -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_sequence_keeps_the_books() -> None:
    run(600)


@pytest.mark.long
def test_any_sequence_keeps_the_books_at_length() -> None:
    run(20_000)
