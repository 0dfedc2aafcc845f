"""What holds for the whole suite: which tests share a process, and how examples are chosen."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

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


class FilesTogether(LoadScopeScheduling):
    """The tests of a file run in one process, which has their fixtures and compiled functions once;
    all that need a whole server do, because they share it."""

    def _split_scope(self, nodeid: str) -> str:
        return "end to end" if nodeid.startswith("tests/e2e/") else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether:
    return FilesTogether(config, log)
