"""Which matrices of a model are quantised, and how."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.quantization.codes import Scheme
from jaxsgl.models.quantization.matrix import GROUP_SIZES, abstract_matrix
from jaxsgl.models.sharding import Layout
from jaxsgl.models.weights import axes_of

HEAD = "head"
"""The output head, where it is not the embedding. It is the matrix that bears rounding worst."""
EXPERTS = "experts"
"""The first axis of weights that are matrices of experts."""


def quantized_family(
    family: Any,
    scheme: Scheme | None,
    head: Scheme | None,
    max_group: int = GROUP_SIZES[0],
    with_zeros: bool = False,
    with_experts: bool = True,
) -> Any:
    """A `weights.ModelClass` of the same models with their matrices quantised; `head` is for the
    output head, `max_group` bounds the inputs that share a scale with 4 bits, and `with_zeros` is
    for 4 bits that come with zeros of their own. The embedding stays as it is, also where it is the
    head, and so do experts unless `with_experts`."""
    if scheme is None:
        return family
    return functools.partial(_build, family, scheme, head, max_group, with_zeros, with_experts)


def online_head(scheme: Scheme) -> Scheme:
    """What the head gets where we choose: no less than 8 bits."""
    return "int8" if scheme == "int4" else scheme


def _build(
    family: Any,
    scheme: Scheme,
    head: Scheme | None,
    max_group: int,
    with_zeros: bool,
    with_experts: bool,
    config: ModelConfig,
    layout: Layout,
    dtype: DTypeLike,
) -> Any:
    model = family(config, layout, dtype)
    for name, weight in named_weights(model):
        wanted = head if name == HEAD else scheme
        axes, num_outputs = axes_of(weight)
        is_matrix = num_outputs > 0 or (with_experts and axes[0] == EXPERTS)
        if is_matrix and wanted is not None:
            matrix = abstract_matrix(
                weight.shape, axes, num_outputs, wanted, layout, max_group, with_zeros
            )
            weight.set_value(matrix)  # pyright: ignore[reportArgumentType]
    return model


def named_weights(model: nnx.Module) -> Iterator[tuple[str, nnx.Param]]:
    """Every weight by its place in the model, for example `layers.0.qkv`."""
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param):
            yield ".".join(map(str, path)), node
