"""Typed access to the JSON object of a config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxsgl.loading.errors import CheckpointError


class ConfigFields:
    """A null counts as absent, as it does in transformers."""

    def __init__(self, raw: Mapping[str, Any], file: str) -> None:
        self.raw = raw
        self.file = file

    def error(self, key: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {key} {why}")

    def unsupported(self, key: str, known: str) -> CheckpointError:
        return self.error(key, f"is {shown(self.get(key))}, which is unsupported; known: {known}")

    def get(self, key: str, default: Any = None) -> Any:
        value = self.raw.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, f"is {shown(value)}, not an integer")
        return value

    def optional_integer(self, key: str) -> int | None:
        return None if self.get(key) is None else self.integer(key)

    def real(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e30:
            raise self.error(key, f"is {shown(value)}, not a number")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.real(key, default)
        if not (value > 0.0 and math.isfinite(value)):
            raise self.error(key, f"is {value}, not positive")
        return value

    def optional_positive(self, key: str, default: float | None = None) -> float | None:
        """None for a null, unlike the default."""
        value = self.raw.get(key, default)
        return None if value is None else self.positive(key, value)

    def reals(self, key: str) -> tuple[float, ...]:
        values = self.get(key, [])
        if not isinstance(values, list) or len(values) > 2**16:
            raise self.error(key, f"is {shown(values)}, not a list of numbers")
        return tuple(ConfigFields({key: value}, self.file).real(key) for value in values)

    def integers(self, key: str) -> tuple[int, ...] | None:
        """None where there is no such list."""
        values = self.get(key)
        if values is None:
            return None
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            raise self.error(key, f"is {shown(values)}, not a list of integers")
        return tuple(values)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"is {shown(value)}, not true or false")
        return value

    def rope(self, layer_kind: str | None = None) -> ConfigFields:
        """The rotary settings, wherever this generation of config.json keeps them.

        `layer_kind` picks one where kinds of layers have settings of their own.
        """
        merged = {key: self.get(key) for key in ("rope_theta", "partial_rotary_factor")}
        for key in ("rope_scaling", "rope_parameters"):
            settings = self.get(key, {})
            if not isinstance(settings, dict):
                raise self.error(key, "is not an object")
            if layer_kind is not None and isinstance(settings.get(layer_kind), dict):
                settings = settings[layer_kind]
            merged |= settings
        return ConfigFields(merged, self.file)


def shown(value: Any) -> str:
    return ascii(value)[:100]
