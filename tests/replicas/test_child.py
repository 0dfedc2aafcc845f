"""What a replica process prints."""

import logging
from collections.abc import Iterator

import pytest

from jaxsgl.logs import LogSettings, set_up_logging


@pytest.fixture(autouse=True)
def levels_restored() -> Iterator[None]:
    loggers = [logging.getLogger(), logging.getLogger("jax")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize(
    ("name", "ours", "of_jax"),
    [
        ("debug", logging.DEBUG, logging.DEBUG),
        ("info", logging.INFO, logging.WARNING),
        ("warning", logging.WARNING, logging.WARNING),
        ("error", logging.ERROR, logging.ERROR),
    ],
)
def test_levels(name: str, ours: int, of_jax: int) -> None:
    set_up_logging(LogSettings(name))
    assert logging.getLogger("jaxsgl.replicas").getEffectiveLevel() == ours
    assert logging.getLogger("jax._src.xla_bridge").getEffectiveLevel() == of_jax
