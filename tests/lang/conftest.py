"""One fake back end per test; whatever the test did, nothing may run on in it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lang.fake_backend import FakeBackend


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    fake = FakeBackend()
    yield fake
    until = time.monotonic() + 60
    while (fake.num_running or fake.held) and time.monotonic() < until:
        time.sleep(0.01)
    assert not fake.num_running and not fake.held
    fake.loop.close()
