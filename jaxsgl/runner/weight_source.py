"""Where a runner's weights come from: at its start, and when they are replaced."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jax.typing import DTypeLike

from jaxsgl.config import ConfigError
from jaxsgl.interface import OperationRefused, UpdateWeights
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.dummy_checkpoint import DummyCheckpoint
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.locate import locate_model
from jaxsgl.loading.orbax_checkpoint import OrbaxCheckpoint
from jaxsgl.loading.quantization_config import StoredQuantization
from jaxsgl.loading.safetensors_checkpoint import SafetensorsCheckpoint
from jaxsgl.models.dummy_tensors import DummyTensors
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.quantization.family import online_head, quantized_family
from jaxsgl.models.quantization.matrix import GROUP_SIZES
from jaxsgl.models.registry import model_class
from jaxsgl.models.sharding import Layout
from jaxsgl.models.weights import FLOAT32_BYTES, Model, ModelClass, TensorSource, load_weights
from jaxsgl.runner.programs import Weights, split_weights


class ModelSource(TensorSource, Protocol):
    """The part of a checkpoint of tensors that a runner is built from."""

    @property
    def config(self) -> ModelConfig: ...


@dataclass(frozen=True)
class WeightForm:
    """The form in which a model's matrices are kept."""

    family: ModelClass
    stored: StoredQuantization | None
    """That of the file, if it is kept as it is."""

    def load(
        self,
        checkpoint: ModelSource | OrbaxCheckpoint,
        layout: Layout,
        dtype: DTypeLike,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Model:
        """All weights of a checkpoint on the mesh. Raises what the checkpoint raises."""
        if isinstance(checkpoint, OrbaxCheckpoint):
            return checkpoint.restore(self.family, layout, dtype, progress)
        tensors: TensorSource = checkpoint
        value_bytes = FLOAT32_BYTES
        if isinstance(checkpoint, DummyCheckpoint):
            tensors = DummyTensors(checkpoint, layout.mesh)
        elif isinstance(checkpoint, SafetensorsCheckpoint):
            tensors = _FileTensors(checkpoint, dtype, with_codes=self.stored is not None)
            value_bytes = checkpoint.value_bytes(np.dtype(dtype))
        return load_weights(
            self.family, checkpoint.config, tensors, layout, dtype, progress, value_bytes
        )


class _FileTensors:
    """A `TensorSource` of what is in the files: numbers that are of `dtype` there stay so, and
    matrices `with_codes` are their codes."""

    def __init__(
        self, checkpoint: SafetensorsCheckpoint, dtype: DTypeLike, *, with_codes: bool
    ) -> None:
        read = checkpoint.stored if with_codes else checkpoint.tensor
        self.tensor = functools.partial(read, dtype=np.dtype(dtype))


def choose_form(quantization: str | None, checkpoint: ModelSource | OrbaxCheckpoint) -> WeightForm:
    """The form that --quantization asks for; None is the checkpoint's own. Raises ConfigError for
    one that this checkpoint cannot be kept in."""
    family = model_class(checkpoint.config.architecture)
    stored = _stored(checkpoint)
    if stored is not None and quantization in (None, stored.method, _own_name(stored)):
        head = stored.scheme if stored.has_head else None
        max_group = stored.group_size if stored.group_size > 0 else GROUP_SIZES[0]
        packed = quantized_family(
            family, stored.scheme, head, max_group, with_zeros=True, with_experts=stored.has_experts
        )
        return WeightForm(packed, stored)
    match quantization:
        case None | "none":
            return WeightForm(family, None)
        case "int8" | "fp8" | "int4" if stored is None:
            head = online_head(quantization)
            return WeightForm(quantized_family(family, quantization, head), None)
        case _:
            what = "not quantised" if stored is None else f"{stored.method} ({stored.scheme})"
            raise ConfigError(f"--quantization {quantization}: the checkpoint is {what}")


def _stored(checkpoint: ModelSource | OrbaxCheckpoint) -> StoredQuantization | None:
    return checkpoint.quantization if isinstance(checkpoint, SafetensorsCheckpoint) else None


def _own_name(stored: StoredQuantization) -> str | None:
    """What --quantization calls the form, beside its method."""
    return stored.scheme if stored.method == "compressed-tensors" else None


class OtherWeights:
    """An `operations.WeightSource` for a runner of `config`: checkpoints of the same model."""

    def __init__(
        self, config: ModelConfig, form: WeightForm, layout: Layout, dtype: DTypeLike, seed: int
    ) -> None:
        self._config = config
        self._form = form
        self._layout = layout
        self._dtype = dtype
        self._seed = seed

    def __call__(self, update: UpdateWeights) -> Callable[[], Weights]:
        try:
            path = locate_model(update.model_path)
            checkpoint = open_checkpoint(path, update.load_format, seed=self._seed)
        except (CheckpointError, ConfigError) as error:
            raise OperationRefused(str(error)) from None
        self._check(checkpoint.config, str(path))
        if _stored(checkpoint) != self._form.stored:
            raise OperationRefused(f"{path}: is not quantised as the model served is")
        return lambda: split_weights(self._form.load(checkpoint, self._layout, self._dtype))

    def _check(self, config: ModelConfig, path: str) -> None:
        """Programs are compiled for one set of sizes and constants."""
        served, found = (dataclasses.asdict(each) for each in (self._config, config))
        for field in served:
            if field != "name" and served[field] != found[field]:
                raise OperationRefused(
                    f"{path}: {field} is {found[field]!a}, the model served has {served[field]!a}"
                )
