"""Keyword arguments as an EngineConfig."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.models.sharding_rules import RulesError, rules_text


def engine_config(settings: Mapping[str, Any]) -> EngineConfig:
    """The config of these settings, named like its fields or their aliases.

    Raises ConfigError, one line, for a name or value that it does not take.
    """
    fields = {
        name: field
        for field in dataclasses.fields(EngineConfig)
        for name in (field.name, *field.metadata["aliases"])
    }
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in fields:
            raise ConfigError(f"{name} is not a setting of the engine")
        field = fields[name]
        if field.name in values:
            raise ConfigError(f"{name} is given twice, once as {field.name}")
        choices = field.metadata["choices"]
        if choices and value != field.default and value not in choices:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(choices)}")
        if field.name == "sharding_rules":
            value = rules_setting(value)
        values[field.name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    for name in ("nnodes", "node_rank", "dist_init_addr", "world_key_file"):
        if values.get(name, fields[name].default) != fields[name].default:
            raise ConfigError(f"{name} is for servers: an engine in a program is one process")
    try:
        return msgspec.convert(values, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{error}".replace("`$.", "`")) from None


def rules_setting(value: Any) -> Any:
    """Sharding rules as a command line would give them: also of a mapping or a path. Raises
    ConfigError for a mapping of something else."""
    if not isinstance(value, Mapping):
        return os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        return rules_text(value)
    except RulesError as error:
        raise ConfigError(str(error)) from None
