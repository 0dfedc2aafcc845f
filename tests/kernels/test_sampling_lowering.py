"""Drawing and token masks lower for an H100 at the shapes of served models, without one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels.sampling.api import SamplingArrays, draw, greedy
from pallas_kernels.token_mask.api import mask_logits

H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
ROWS = 256
VOCABS = pytest.mark.parametrize("vocab", [49152, 128256, 151936])


def num_kernels(op: Callable[..., Any], *arguments: Any, backend: str) -> int:
    """Triton kernels in the program of one call."""
    run = functools.partial(op, backend=backend)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=H100)):
        lowered = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",))
    return lowered.as_text().count("@__gpu$xla.gpu.triton(")


def floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def ints(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def words(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.uint32)


def sampling(rows: int) -> SamplingArrays:
    return SamplingArrays(
        floats(rows), floats(rows), ints(rows), floats(rows), words(rows, 2), ints(rows)
    )


@VOCABS
def test_draw(vocab: int) -> None:
    arguments = floats(ROWS, vocab), sampling(ROWS)
    assert num_kernels(draw, *arguments, backend="triton") == 2
    assert num_kernels(greedy, arguments[0], backend="triton") == 1


@VOCABS
def test_mask_logits(vocab: int) -> None:
    arguments = floats(ROWS, vocab), words(8, -(-vocab // 32)), ints(ROWS)
    assert num_kernels(mask_logits, *arguments, backend="triton") == 1


def test_xla_uses_none() -> None:
    assert num_kernels(draw, floats(4, 1000), sampling(4), backend="xla") == 0
    assert num_kernels(mask_logits, floats(4, 99), words(1, 4), ints(4), backend="xla") == 0
