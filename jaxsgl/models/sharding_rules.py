"""Sharding rules as people write them: a preset's name, a TOML file, `axis=mesh_axis` pairs or a
mapping. Imports no jax.

A rule maps a logical axis of weights to the mesh axes that it is spread over; an axis without a
rule is whole on every device.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOGICAL_AXES = ("vocab", "embed", "q_heads", "kv_heads", "mlp", "experts")


class RulesError(ValueError):
    """One line that names what is wrong with a person's sharding rules."""


@dataclass(frozen=True)
class ShardingRules:
    """Hashable."""

    name: str
    axes: tuple[tuple[str, tuple[str, ...]], ...]
    """(logical axis, mesh axes), each logical axis once."""
    adapts: bool
    """A preset leaves out mesh axes that a mesh lacks, and keeps whole what its devices do not
    divide. What a person wrote is meant as it stands, and refused where it does not fit."""


def _preset(name: str, **axes: str | tuple[str, ...]) -> ShardingRules:
    spread = tuple((axis, (to,) if isinstance(to, str) else to) for axis, to in axes.items())
    return ShardingRules(name, spread, adapts=True)


MEGATRON = _preset("megatron", vocab="tp", q_heads="tp", kv_heads="tp", mlp="tp", experts="ep")
"""Heads, feed-forward columns and vocabulary are spread; one all-reduce after attention and one
after the feed-forward block (arXiv:1909.08053). Experts are shared out over an axis of their
own."""

PRESETS: Mapping[str, ShardingRules] = {
    rules.name: rules
    for rules in (
        MEGATRON,
        _preset("replicated"),
        _preset("mlp-only", mlp="tp"),
        _preset("attention-only", q_heads="tp", kv_heads="tp"),
        _preset("vocab-only", vocab="tp"),
        # Matrices lie in parts and are gathered where they are used (arXiv:1910.02054, stage 3).
        _preset("fsdp", embed=("fsdp", "tp")),
        _preset(
            "fsdp-megatron",
            embed="fsdp",
            vocab="tp",
            q_heads="tp",
            kv_heads="tp",
            mlp="tp",
            experts="ep",
        ),
    )
}


def read_rules(text: str) -> ShardingRules:
    """The rules that a preset's name, a path that ends in .toml, or `axis=mesh_axis` pairs mean.

    Pairs are separated by commas, several mesh axes of one axis by a plus: `mlp=tp+fsdp,vocab=tp`.
    Raises RulesError.
    """
    if text in PRESETS:
        return PRESETS[text]
    if text.endswith(".toml"):
        return _read_file(Path(text))
    if "=" in text:
        pairs: dict[str, Any] = {}
        for pair in text.split(","):
            axis, _, mesh_axes = (part.strip() for part in pair.partition("="))
            if axis in pairs:
                raise RulesError(f"sharding rules {text!a} name {axis} twice")
            pairs[axis] = mesh_axes.split("+")
        return rules_of(pairs, name=text)
    raise RulesError(
        f"sharding rules {text!a} are not known; there are {', '.join(PRESETS)}, files that end in "
        f".toml, and pairs like mlp=tp,vocab=tp"
    )


def rules_of(axes: Mapping[str, Any], name: str) -> ShardingRules:
    """Rules of a mapping from a logical axis to a mesh axis or a list of them. Raises
    RulesError."""
    spread: list[tuple[str, tuple[str, ...]]] = []
    for axis, value in axes.items():
        if axis not in LOGICAL_AXES:
            raise RulesError(f"sharding rule for {axis!a}; axes are {', '.join(LOGICAL_AXES)}")
        mesh_axes = [value] if isinstance(value, str) else value
        if not isinstance(mesh_axes, list | tuple) or not all(
            isinstance(each, str) and each.isidentifier() for each in mesh_axes
        ):
            raise RulesError(
                f"sharding rule {axis} = {value!a}; it takes a mesh axis or a list of them"
            )
        if len(set(mesh_axes)) < len(mesh_axes):
            raise RulesError(f"sharding rule {axis} names a mesh axis twice")
        if mesh_axes:
            spread.append((axis, tuple(mesh_axes)))
    return ShardingRules(name, tuple(spread), adapts=False)


def rules_text(axes: Mapping[str, Any]) -> str:
    """A mapping in the form that `read_rules` takes. Raises RulesError."""
    rules = rules_of(axes, name="")
    pairs = [f"{axis}={'+'.join(mesh_axes)}" for axis, mesh_axes in rules.axes]
    return ",".join(pairs) or "replicated"


def _read_file(path: Path) -> ShardingRules:
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError(f"sharding rules {path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"sharding rules {path}: {error}") from None
    rules = content.pop("rules", None)
    if content or not isinstance(rules, dict):
        extra = f", and nothing else: not {', '.join(content)}" if content else ""
        raise RulesError(f"sharding rules {path}: a table [rules] is wanted{extra}")
    try:
        return rules_of(rules, name=path.stem)
    except RulesError as error:
        raise RulesError(f"{path}: {error}") from None
