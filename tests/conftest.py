"""What holds for the whole suite: which tests share a process, and how examples are chosen."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

END_TO_END = Path(__file__).parent / "e2e"

# Before any test module is imported: `settings(...)` fills in what it is not told from the profile
# that is loaded at that moment. `--hypothesis-profile` chooses the other one, also before that.
settings.register_profile("same every run", derandomize=True, deadline=None, print_blob=True)
# (With CI=true in the environment Hypothesis itself starts from a profile that draws the same.)
settings.register_profile("random", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("same every run")


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """For tests that set up logging, which is the whole process's."""
    root, of_jax = logging.getLogger(), logging.getLogger("jax")
    before = root.level, root.handlers[:], of_jax.level
    root.handlers.clear()  # `set_up_logging` closes those it finds
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    of_jax.setLevel(before[2])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(END_TO_END):
            # They share one server and one model.
            item.add_marker(pytest.mark.xdist_group("end to end"))
