"""The Triton kernels lower for an H100 at the shapes of served models, on machines without one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels.paged_decode.api import paged_decode
from pallas_kernels.paged_decode.shared_prefixes import SharedPrefixes, max_packs
from pallas_kernels.paged_prefill.api import paged_prefill

H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
LLAMA_8B = (32, 8, 128)
QWEN2_7B = (28, 4, 128)
PHI3_MINI = (32, 32, 96)
MAX_PAGES = 8192
"""Of 16 tokens: a context of 131,072."""


def num_kernels(op: Callable[..., jax.Array], *arguments: Any, backend: str = "triton") -> int:
    """Triton kernels in the program of one call."""
    run = functools.partial(op, scale=1.0, backend=backend)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=H100)):
        lowered = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",))
    return lowered.as_text().count("@__gpu$xla.gpu.triton(")


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def cache(heads: tuple[int, int, int], kv_dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((4000, 16, *heads[1:]), kv_dtype),) * 2


def queries(tokens: int, heads: tuple[int, int, int], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((tokens, heads[0], heads[2]), dtype)


def decode_arguments(
    rows: int, heads: tuple[int, int, int], dtype: Any, kv_dtype: Any
) -> tuple[jax.ShapeDtypeStruct, ...]:
    table = ints(rows, MAX_PAGES)
    return queries(rows, heads, dtype), *cache(heads, kv_dtype), table, ints(rows)


DTYPES = pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [
        (jnp.float32, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16),
        (jnp.bfloat16, jnp.float8_e4m3fn),
    ],
    ids=["float32", "bfloat16", "float8"],
)
HEADS = pytest.mark.parametrize(
    "heads", [LLAMA_8B, QWEN2_7B, PHI3_MINI], ids=["llama", "qwen2", "phi3"]
)


@DTYPES
@HEADS
def test_decode(heads: tuple[int, int, int], dtype: Any, kv_dtype: Any) -> None:
    """Few rows are split, which takes a second kernel."""
    few, many = (decode_arguments(rows, heads, dtype, kv_dtype) for rows in (1, 256))
    assert num_kernels(paged_decode, *few) == 2
    assert num_kernels(paged_decode, *many) == 1


@DTYPES
@HEADS
def test_decode_of_shared_prefixes(heads: tuple[int, int, int], dtype: Any, kv_dtype: Any) -> None:
    """One kernel for the prefixes, one for each row's own tokens, one to merge."""
    shared = SharedPrefixes(ints(max_packs(64) + 1), ints(max_packs(64)))
    arguments = decode_arguments(64, heads, dtype, kv_dtype)

    def run(*arrays: Any, **options: Any) -> jax.Array:
        *others, starts, lengths = arrays
        return paged_decode(*others, shared=SharedPrefixes(starts, lengths), **options)

    assert num_kernels(run, *arguments, *shared) == 3


@DTYPES
@HEADS
@pytest.mark.parametrize("tokens", [256, 2048])
def test_prefill(heads: tuple[int, int, int], dtype: Any, kv_dtype: Any, tokens: int) -> None:
    """In the layout for few queries, and in that for many."""
    rows = 256
    table = ints(rows, MAX_PAGES)
    pages = cache(heads, kv_dtype)
    q = queries(tokens, heads, dtype)
    # That for rows of one token, and that for others.
    assert num_kernels(paged_prefill, q, *pages, table, ints(rows + 1), ints(rows)) == 2


def test_xla_uses_none() -> None:
    arguments = decode_arguments(1, LLAMA_8B, jnp.bfloat16, jnp.bfloat16)
    assert num_kernels(paged_decode, *arguments, backend="xla") == 0
