"""Reads the config.json of a HuggingFace folder. Code it points to (`auto_map`) is never run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsgl.loading.config_fields import ConfigFields, shown
from jaxsgl.loading.hf_families import FAMILIES
from jaxsgl.loading.json_file import read_json_object
from jaxsgl.loading.model_tensors import check_config
from jaxsgl.loading.rope_config import hf_rope_scaling
from jaxsgl.models.model_config import KNOWN_ARCHITECTURES, ModelConfig

MAX_CONTEXT_LEN = 2**31 - 1


def read_hf_config(
    folder: Path, name: str, known_architectures: tuple[str, ...] = KNOWN_ARCHITECTURES
) -> ModelConfig:
    """Return what `folder`/config.json says. Raises CheckpointError."""
    path = folder / "config.json"
    return hf_model_config(read_json_object(path), str(path), name, known_architectures)


def hf_model_config(
    raw: Mapping[str, Any],
    file: str,
    name: str = "",
    known_architectures: tuple[str, ...] = KNOWN_ARCHITECTURES,
) -> ModelConfig:
    """Return the configuration that the content `raw` of `file` describes.

    Raises CheckpointError for an unknown architecture, a value that makes no sense, and a feature
    that would change the model's outputs and is not implemented.
    """
    fields = ConfigFields(raw, file)
    architecture = raw.get("model_type")
    if architecture not in known_architectures or architecture not in FAMILIES:
        known = ", ".join(known_architectures)
        raise fields.error(
            "model_type", f"is {shown(architecture)}, which is unknown; known: {known}"
        )
    family = FAMILIES[architecture]
    _refuse_unsupported(fields, family.activation_key, family.activations)
    hidden = fields.integer("hidden_size")
    q_heads = fields.integer("num_attention_heads")
    context_len = fields.integer("max_position_embeddings")
    rope = fields.rope(family.rope_layers)
    scaling = hf_rope_scaling(
        rope, context_len, fields.optional_integer("original_max_position_embeddings")
    )
    if scaling is not None and scaling.kind in ("dynamic", "yarn"):
        # The length that config.json states may be the one before stretching.
        stretched_len = scaling.original_context_len * scaling.factor
        context_len = max(context_len, int(min(stretched_len, MAX_CONTEXT_LEN)))
    head_dim = fields.integer(
        "head_dim", family.head_dim or (hidden // q_heads if q_heads > 0 else 0)
    )
    rotary_dim = int(head_dim * rope.positive("partial_rotary_factor", 1.0))
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=fields.integer("num_hidden_layers"),
        num_q_heads=q_heads,
        num_kv_heads=fields.integer("num_key_value_heads", q_heads),
        head_dim=head_dim,
        mlp_size=fields.integer("intermediate_size"),
        norm_eps=fields.real("rms_norm_eps", 1e-6),
        rope_theta=rope.real("rope_theta", family.rope_theta),
        context_len=context_len,
        tie_embeddings=fields.flag("tie_word_embeddings", family.tie_embeddings),
        rope_scaling=scaling,
        rotary_dim=None if rotary_dim == head_dim else rotary_dim,
        activation=family.activations[fields.get(family.activation_key, family.activation)],
        name=name,
    )
    check_config(config, file)
    config = family.refine(fields, config)
    check_config(config, file)
    return config


def _refuse_unsupported(
    fields: ConfigFields, activation_key: str, activations: Mapping[str, str]
) -> None:
    for key in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if fields.get(key):
            raise fields.error(key, "is set, which is unsupported")
    activation = fields.get(activation_key)
    if activation is not None and (
        not isinstance(activation, str) or activation not in activations
    ):
        raise fields.unsupported(activation_key, ", ".join(activations))
