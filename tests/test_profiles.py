"""`make test` draws the same examples every time, `make test-long` draws new ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

AT_IMPORT = settings(max_examples=20)
"""Made as other test modules make theirs."""


def drawn(chosen: settings) -> list[int]:
    """The examples of one run."""
    examples: list[int] = []

    @settings(chosen, database=None)
    @given(st.integers())
    def note(number: int) -> None:
        examples.append(number)

    note()
    return examples


def test_the_profile_in_use_is_that_of_the_command_line(request: pytest.FixtureRequest):
    random = request.config.getoption("--hypothesis-profile") == "random"
    assert AT_IMPORT.derandomize is not random
    assert AT_IMPORT.print_blob and AT_IMPORT.deadline is None
    assert (drawn(AT_IMPORT) == drawn(AT_IMPORT)) is not random


@pytest.mark.parametrize(("profile", "same"), [("same every run", True), ("random", False)])
def test_what_the_profiles_draw(profile: str, same: bool):
    chosen = settings(settings.get_profile(profile), max_examples=20)
    assert (drawn(chosen) == drawn(chosen)) is same
