"""Keyword arguments as a config, and what is wrong with them in one line."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.engine import check_quotas
from jaxsgl.offline.settings import engine_config


def test_names_are_those_of_the_config_or_its_aliases():
    assert engine_config({}) == EngineConfig()
    assert engine_config({"model_path": Path("a/b"), "page_size": 8}) == EngineConfig(
        model_path="a/b", page_size=8
    )
    for field in dataclasses.fields(EngineConfig):
        default = getattr(EngineConfig(), field.name)
        for name in (field.name, *field.metadata["aliases"]):
            assert engine_config({name: default}) == EngineConfig()


def test_sharding_rules_may_be_a_mapping():
    config = engine_config({"sharding_rules": {"mlp": ["fsdp", "tp"], "vocab": "tp"}})
    assert config == EngineConfig(sharding_rules="mlp=fsdp+tp,vocab=tp")
    assert engine_config({"sharding_rules": Path("a.toml")}).sharding_rules == "a.toml"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"pages": 8}, "pages is not a setting of the engine"),
        ({"nnodes": 2}, "nnodes is for servers: an engine in a program is one process"),
        ({"page_size": "8"}, "Expected `int`, got `str` - at `page_size`"),
        (
            {"sharding_rules": {"mlp": 2}},
            "sharding rule mlp = 2; it takes a mesh axis or a list of them",
        ),
        ({"page_size": None}, "Expected `int`, got `null` - at `page_size`"),
        (
            {"radix_eviction_policy": "mru"},
            "radix_eviction_policy='mru' is not one of lru, lfu, priority",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(settings, line):
    with pytest.raises(ConfigError) as caught:
        engine_config(settings)
    assert str(caught.value) == line


def test_every_default_may_be_given():
    assert engine_config(dataclasses.asdict(EngineConfig())) == EngineConfig()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"key_quota": 1.5}, "--key-quota 1.5 is not a share from 0 to 1"),
        ({"cache_quota": -1.0}, "--cache-quota -1 is not a share from 0 to 1"),
        ({"key_quota": 0.5, "fair_queue": False}, "--key-quota needs the fair queue"),
    ],
)
def test_quotas_that_mean_nothing(settings: dict[str, Any], line: str):
    with pytest.raises(ConfigError, match=line):
        check_quotas(engine_config(settings))
