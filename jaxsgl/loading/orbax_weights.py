"""Weights as an Orbax checkpoint: written from any other checkpoint, restored onto any mesh.

On disk is a flat tree, name -> array, in the shapes that the model's modules declare for a layout
that repeats no kv heads. Neither names nor shapes depend on a mesh. Importing this takes a moment;
only those who read or write such a checkpoint should.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.model_tensors import check_tensors
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.quantization.family import named_weights
from jaxsgl.models.quantization.matrix import QuantizedMatrix
from jaxsgl.models.sharding import Layout
from jaxsgl.models.sharding_rules import MEGATRON
from jaxsgl.models.weights import (
    Model,
    ModelClass,
    TensorSource,
    load_order,
    num_bytes,
    repeat_kv_heads,
    set_values,
    weight_bytes,
)

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, as the model keeps them."""


def save_weights(
    path: Path,
    model_class: ModelClass,
    config: ModelConfig,
    tensors: TensorSource,
    dtype: DTypeLike,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write the model of `tensors` to the new folder `path`, in `dtype`.

    An axis that layouts may spread is cut into as many pieces as jax has devices, or fewer where
    these do not divide it: on meshes up to that size, a device reads from disk only what it keeps.
    The devices hold the whole model meanwhile. Raises what `tensors` raises, and OSError.
    """
    one_device = Layout(_mesh(1), rules=(), kv_repeat=1, notes=())
    model = model_class(config, one_device, dtype)
    names = {id(weight): name for name, weight in named_weights(model)}
    arrays: dict[str, jax.Array] = {}
    total, done = num_bytes(model), 0
    for weight, read in model.host_weights(tensors):
        values = read()
        placed = jax.device_put(np.asarray(values, weight.dtype), _pieces(weight))
        # The host's memory is free to be reused once the copy is done.
        arrays[names[id(weight)]] = placed.block_until_ready()
        del values
        done += placed.nbytes
        progress(done, total)
    with _checkpointer() as checkpointer:
        try:
            checkpointer.save(path.absolute(), ocp.args.PyTreeSave(arrays))
        except Exception as error:  # Orbax and TensorStore raise nothing more specific.
            raise OSError(_one_line(error)) from error


def restore_weights(
    path: Path,
    model_class: ModelClass,
    config: ModelConfig,
    layout: Layout,
    dtype: DTypeLike,
    progress: Progress = lambda done, total: None,
) -> Model:
    """A model with every weight read from `path` to where `layout` wants it, in `dtype`.

    One weight is read at a time, the largest first, each device's share by itself; only merged
    matrices whose kv heads the layout repeats are on the host as a whole. Raises CheckpointError,
    one line that names the weight, for files that do not hold this model.
    """
    model = model_class(config, layout, dtype)
    as_stored = model_class(config, dataclasses.replace(layout, kv_repeat=1), dtype)
    stored_shapes = {name: weight.shape for name, weight in named_weights(as_stored)}
    weights = sorted(named_weights(model), key=lambda each: load_order(each[1]))
    with _checkpointer() as checkpointer:
        with _reading(path, "the list of weights"):
            found = _found_shapes(checkpointer, path)
        check_tensors(found, stored_shapes, str(path))
        total, done = num_bytes(model), 0
        for name, weight in weights:
            repeat = 1 if weight.shape == stored_shapes[name] else layout.kv_repeat
            with _reading(path, name):
                restored = _restore(checkpointer, path, name, weight, layout, repeat)
            set_values(weight, restored, layout)
            done += weight_bytes(weight)
            progress(done, total)
    return model


def _found_shapes(checkpointer: ocp.Checkpointer, path: Path) -> dict[str, tuple[int, ...]]:
    metadata = checkpointer.metadata(path.absolute()).item_metadata
    if metadata is None:
        raise ValueError("there is none")
    return {name: info.shape for name, info in metadata.tree.items()}


def _restore(
    checkpointer: ocp.Checkpointer,
    path: Path,
    name: str,
    weight: nnx.Param,
    layout: Layout,
    kv_repeat: int,
) -> jax.Array | np.ndarray[Any, Any]:
    """The values of one weight, if they can be on the mesh; the others are left unread."""
    quantized = isinstance(weight.get_value(), QuantizedMatrix)
    dtype = np.dtype(np.float32) if quantized else weight.dtype
    sharding = layout.sharding(*weight.get_metadata("logical_axes"))
    if kv_repeat == 1:
        how = ocp.ArrayRestoreArgs(dtype=dtype, sharding=sharding)
    else:
        how = ocp.RestoreArgs(dtype=dtype, restore_type=np.ndarray)
    wanted = ocp.args.PyTreeRestore(item={name: 0}, restore_args={name: how}, partial_restore=True)
    restored = checkpointer.restore(path.absolute(), wanted)[name]
    if kv_repeat > 1:
        restored = repeat_kv_heads(restored, kv_repeat)
    return restored


def _pieces(weight: nnx.Param) -> NamedSharding:
    """Cuts the axis that layouts spread into a piece per device."""
    axes = weight.get_metadata("logical_axes")
    spread = next((axis for axis, name in enumerate(axes) if name in dict(MEGATRON.axes)), 0)
    num_pieces = math.gcd(weight.shape[spread], jax.device_count())
    return NamedSharding(_mesh(num_pieces), PartitionSpec(*[None] * spread, "pieces"))


def _mesh(num_devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:num_devices]), ("pieces",))


@contextlib.contextmanager
def _checkpointer() -> Iterator[ocp.Checkpointer]:
    """Keeps no mesh with the weights, and does not compress them: that takes longer than it
    saves."""
    with _silenced(logging.getLogger("absl")):
        handlers = ocp.type_handlers
        types = handlers.create_type_handler_registry(
            (jax.Array, handlers.ArrayHandler(enable_write_sharding_file=False)),
            (np.ndarray, handlers.NumpyHandler()),
        )
        handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=types)
        with ocp.Checkpointer(handler) as checkpointer:
            yield checkpointer


@contextlib.contextmanager
def _silenced(logger: logging.Logger) -> Iterator[None]:
    """Orbax reports every step, and what fails is raised as well."""
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # As above.
        raise CheckpointError(f"{path}: cannot read {what}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
