"""What a config.json says about how its checkpoint is quantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.models.quantization.codes import Scheme

Method = Literal["awq", "gptq", "compressed-tensors"]
GROUP_SIZES = (32, 64, 128, -1)
"""Inputs that share a scale; -1 is all of them."""


@dataclass(frozen=True, slots=True)
class StoredQuantization:
    """How the matrices of a checkpoint are stored."""

    method: Method
    scheme: Scheme
    group_size: int = -1
    zero_offset: int = 0
    """What is added to the zeros of the file."""
    has_head: bool = False
    """Whether the output head is stored this way, too; known when the tensors are."""
    has_experts: bool = False
    """Whether all matrices of experts are."""


def read_quantization(raw: Mapping[str, Any], file: str) -> StoredQuantization | None:
    """None if nothing is quantised. Raises CheckpointError for a form that is not read here."""
    settings = raw.get("quantization_config")
    if not settings:
        return None
    where = f"{file}: quantization_config"
    if not isinstance(settings, dict):
        raise CheckpointError(f"{where} is not an object")
    match settings.get("quant_method"):
        case "awq":
            _require(settings, where, bits=(4,), version=("gemm", None), group_size=GROUP_SIZES)
            return StoredQuantization("awq", "int4", settings["group_size"])
        case "gptq":
            formats = ("gptq", "gptq_v2", None)
            _require(settings, where, bits=(4,), group_size=GROUP_SIZES, checkpoint_format=formats)
            offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
            return StoredQuantization("gptq", "int4", settings["group_size"], offset)
        case "compressed-tensors":
            return _compressed(settings, where)
        case method:
            raise CheckpointError(
                f"{where}: quant_method is {ascii(method)[:100]}, which is unsupported; "
                "known: awq, gptq, compressed-tensors"
            )


def _compressed(settings: Mapping[str, Any], where: str) -> StoredQuantization:
    _require(settings, where, format=("int-quantized", "float-quantized", "naive-quantized"))
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise CheckpointError(f"{where}: config_groups is not one group")
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise CheckpointError(f"{where}: config_groups says nothing of weights")
    strategies = ("channel", "tensor")
    _require(
        weights, where, num_bits=(8,), type=("int", "float"), strategy=strategies, symmetric=(True,)
    )
    scheme = "int8" if weights["type"] == "int" else "fp8"
    return StoredQuantization("compressed-tensors", scheme)


def _require(settings: Mapping[str, Any], where: str, **known: tuple[Any, ...]) -> None:
    for key, values in known.items():
        if settings.get(key) not in values:
            found = ascii(settings.get(key))[:100]
            listed = ", ".join(str(value) for value in values if value is not None)
            raise CheckpointError(
                f"{where}: {key} is {found}, which is unsupported; known: {listed}"
            )
