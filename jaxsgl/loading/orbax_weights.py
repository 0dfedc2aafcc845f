"""Weights as an Orbax checkpoint: written from any other checkpoint, restored onto any mesh.

On disk is a flat tree, name -> array, in the shapes that the model's modules declare for a layout
that repeats no kv heads. Neither names nor shapes depend on a mesh. Importing this takes a moment;
only those who read or write such a checkpoint should.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
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
from jaxsgl.models.read_ahead import Job, reading_ahead
from jaxsgl.models.sharding import Layout
from jaxsgl.models.sharding_rules import MEGATRON
from jaxsgl.models.weights import (
    READ_AHEAD_BYTES,
    Model,
    ModelClass,
    TensorSource,
    load_order,
    num_bytes,
    passing_bytes,
    repeat_kv_heads,
    set_values,
    weight_bytes,
)

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, as the model keeps them."""
Named = tuple[str, nnx.Param]
"""A weight after its name."""

BATCH_BYTES = 2**29
"""Of weights that are restored by one call, unless a single one has more."""
CHUNK_BYTES = 2**24
"""Of what is written as one piece, at most: pieces are read, and put into their places, several at
once, however large the weight."""
NUM_RESTORED = 2
"""Batches: one on its way from the files while another is placed."""


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
            in_chunks = dict.fromkeys(arrays, ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES))
            checkpointer.save(path.absolute(), ocp.args.PyTreeSave(arrays, in_chunks))
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

    A few weights are read at a time, the largest first, each device's share by itself; only merged
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
        restore = functools.partial(_restore, checkpointer, path, layout, stored_shapes)
        batches = list(_batches(weights))
        jobs = [Job(_host_bytes(batch), functools.partial(restore, batch)) for batch in batches]
        with reading_ahead(jobs, _max_ahead_bytes(model, layout), NUM_RESTORED) as next_batch:
            for batch in batches:
                restored = next_batch()
                for name, weight in batch:
                    set_values(weight, restored.pop(name), layout)
                    done += weight_bytes(weight)
                    progress(done, total)
    return model


def _max_ahead_bytes(model: Model, layout: Layout) -> int:
    """Processes of a mesh have to restore the same at the same time. What is to be quantised takes
    too much of a device before it is."""
    quantized = any(_is_quantized(weight) for _, weight in named_weights(model))
    return 0 if quantized or layout.mesh.is_multi_process else READ_AHEAD_BYTES


def _host_bytes(batch: list[Named]) -> int:
    """What comes from files, and what is made of it."""
    return 2 * sum(weight_bytes(weight) for _, weight in batch)


def _batches(weights: list[Named]) -> Iterator[list[Named]]:
    """What to restore together: one by one, weights take as long to look up as to read.

    NUM_RESTORED batches together take no more of a device than loading the first weight takes for
    a moment anyway (see `loading_bytes`), which a matrix to be quantised does alone.
    """
    batch: list[Named] = []
    num_bytes = max_bytes = 0
    for name, weight in weights:
        num_bytes += weight_bytes(weight)
        if not batch or num_bytes > max_bytes or _is_quantized(weight):
            if batch:
                yield batch
            batch, num_bytes = [], weight_bytes(weight)
            passing = 0 if _is_quantized(weight) else passing_bytes(math.prod(weight.shape))
            max_bytes = min(BATCH_BYTES, passing // NUM_RESTORED)
        batch.append((name, weight))
    yield batch


def _found_shapes(checkpointer: ocp.Checkpointer, path: Path) -> dict[str, tuple[int, ...]]:
    metadata = checkpointer.metadata(path.absolute()).item_metadata
    if metadata is None:
        raise ValueError("there is none")
    return {name: info.shape for name, info in metadata.tree.items()}


def _restore(
    checkpointer: ocp.Checkpointer,
    path: Path,
    layout: Layout,
    stored_shapes: Mapping[str, tuple[int, ...]],
    batch: list[Named],
) -> dict[str, Any]:
    """The values of some weights by name, on the mesh if they can be; the others are left
    unread."""
    how = {
        name: _restore_args(weight, layout, repeated=weight.shape != stored_shapes[name])
        for name, weight in batch
    }
    wanted = ocp.args.PyTreeRestore(
        item=dict.fromkeys(how, 0), restore_args=how, partial_restore=True
    )
    try:
        restored = checkpointer.restore(path.absolute(), wanted)
    except Exception as error:  # As in `_reading`.
        if len(batch) > 1:
            # Alone, the one that cannot be read says which it is.
            for each in batch:
                _restore(checkpointer, path, layout, stored_shapes, [each])
        names = ", ".join(how)
        raise CheckpointError(f"{path}: cannot read {names}: {_one_line(error)}") from error
    for name, weight in batch:
        if weight.shape != stored_shapes[name]:
            restored[name] = repeat_kv_heads(restored[name], layout.kv_repeat)
    return restored


def _restore_args(weight: nnx.Param, layout: Layout, *, repeated: bool) -> ocp.RestoreArgs:
    dtype = np.dtype(np.float32) if _is_quantized(weight) else weight.dtype
    if repeated:
        return ocp.RestoreArgs(dtype=dtype, restore_type=np.ndarray)
    sharding = layout.sharding(*weight.get_metadata("logical_axes"))
    return ocp.ArrayRestoreArgs(dtype=dtype, sharding=sharding)


def _is_quantized(weight: nnx.Param) -> bool:
    return isinstance(weight.get_value(), QuantizedMatrix)


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
