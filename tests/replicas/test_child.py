"""What a replica process prints."""

import logging

import pytest

from jaxsgl.logs import LogSettings, set_up_logging


@pytest.mark.usefixtures("logging_restored")
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
