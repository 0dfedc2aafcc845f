"""The device operations as `bench.kernels` measures them, and the least that each must do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.kv_write.api import kv_write
from pallas_kernels.quant_matmul.api import FLOAT8, quant_matmul
from pallas_kernels.sampling.api import SamplingArrays, draw
from pallas_kernels.token_mask.api import mask_logits

PAGE_SIZE = 16

type Arrays = tuple[jax.Array, ...]


class Work(NamedTuple):
    """What no implementation can do without."""

    num_bytes: float
    """Read from and written to device memory, everything once."""
    num_flops: float = 0.0
    """Of matrix products."""


@dataclass(frozen=True)
class Task:
    """An operation on one set of arrays. A program measures it on several sets in a row, so that no
    set is still in a cache when its turn comes again."""

    name: str
    work: Work
    set_bytes: int
    make_carry: Callable[[], Arrays]
    make_set: Callable[[int], Arrays]
    """The arrays of that number."""
    call: Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]
    """Carry and set to the next carry and the set as it is then."""


@dataclass(frozen=True)
class Heads:
    name: str
    q_heads: int
    kv_heads: int
    head_dim: int


LLAMA_8B = Heads("Llama 8B", 32, 8, 128)
QWEN2_7B = Heads("Qwen2 7B", 28, 4, 128)
TINY = Heads("tiny", 4, 2, 16)


def decode_task(
    heads: Heads, rows: int, kv_len: int, dtype: str, kv_dtype: str, op: Callable[..., jax.Array]
) -> Task:
    """One query per row; `op` is called like `paged_decode`, with `scale` alone."""
    num_pages = rows * _pages_each(kv_len)

    def make_carry() -> Arrays:
        q = _normal(0, (rows, heads.q_heads, heads.head_dim), dtype)
        return q, _page_table(rows, kv_len), jnp.full(rows, kv_len, jnp.int32)

    def call(carry: Arrays, pages: Arrays) -> tuple[Arrays, Arrays]:
        q, table, lengths = carry
        out = op(q, *pages, table, lengths, scale=heads.head_dim**-0.5)
        return (out, table, lengths), pages

    return Task(
        name=f"{heads.name} {rows} x {kv_len}",
        work=attention_work(heads, np.full(rows, 1), np.full(rows, kv_len), dtype, kv_dtype),
        set_bytes=_cache_bytes(heads, num_pages, kv_dtype),
        make_carry=make_carry,
        make_set=functools.partial(_pages, heads, num_pages, kv_dtype),
        call=call,
    )


def prefill_task(
    heads: Heads,
    rows: int,
    q_len: int,
    cached_len: int,
    dtype: str,
    kv_dtype: str,
    op: Callable[..., jax.Array],
) -> Task:
    """New queries behind cached ones, alike in all rows; `op` is called like `paged_prefill`."""
    kv_len = cached_len + q_len
    num_pages = rows * _pages_each(kv_len)

    def make_carry() -> Arrays:
        q = _normal(0, (rows * q_len, heads.q_heads, heads.head_dim), dtype)
        starts = jnp.arange(rows + 1, dtype=jnp.int32) * q_len
        return q, _page_table(rows, kv_len), starts, jnp.full(rows, kv_len, jnp.int32)

    def call(carry: Arrays, pages: Arrays) -> tuple[Arrays, Arrays]:
        q, *rest = carry
        out = op(q, *pages, *rest, scale=heads.head_dim**-0.5)
        return (out, *rest), pages

    return Task(
        name=f"{heads.name} {rows} x {q_len} behind {cached_len}",
        work=attention_work(heads, np.full(rows, q_len), np.full(rows, kv_len), dtype, kv_dtype),
        set_bytes=_cache_bytes(heads, num_pages, kv_dtype),
        make_carry=make_carry,
        make_set=functools.partial(_pages, heads, num_pages, kv_dtype),
        call=call,
    )


def attention_work(
    heads: Heads, q_len: np.ndarray, kv_len: np.ndarray, dtype: str, kv_dtype: str
) -> Work:
    """Of rows of so many queries, which end rows of so many keys: keys and values are read, queries
    read and outputs written; a query and a key that it sees cost two products of head_dim."""
    keys = int(kv_len.sum()) * heads.kv_heads * heads.head_dim
    queries = int(q_len.sum()) * heads.q_heads * heads.head_dim
    num_pairs = int((q_len * (2 * kv_len - q_len + 1) // 2).sum())
    return Work(
        num_bytes=2 * keys * _itemsize(kv_dtype) + 2 * queries * _itemsize(dtype),
        num_flops=4.0 * num_pairs * heads.q_heads * heads.head_dim,
    )


def kv_write_task(heads: Heads, tokens: int, num_pages: int, dtype: str) -> Task:
    """New keys and values of so many tokens, each to a place of its own."""
    shape = (tokens, heads.kv_heads, heads.head_dim)
    places = np.random.default_rng(0).permutation(num_pages * PAGE_SIZE)[:tokens]

    def make_carry() -> Arrays:
        page, offset = (jnp.asarray(x, jnp.int32) for x in divmod(places, PAGE_SIZE))
        return _normal(0, shape, dtype), _normal(1, shape, dtype), page, offset

    def call(carry: Arrays, pages: Arrays) -> tuple[Arrays, Arrays]:
        k_pages, v_pages = pages
        k, v, page, offset = carry
        return carry, kv_write(k_pages, v_pages, k, v, page, offset)

    return Task(
        name=f"{heads.name} {tokens} tokens",
        work=kv_write_work(heads, tokens, dtype),
        set_bytes=_cache_bytes(heads, num_pages, dtype),
        make_carry=make_carry,
        make_set=functools.partial(_pages, heads, num_pages, dtype),
        call=call,
    )


def kv_write_work(heads: Heads, tokens: int, dtype: str) -> Work:
    """Keys and values are read and written."""
    return Work(4 * tokens * heads.kv_heads * heads.head_dim * _itemsize(dtype))


def sampling_task(
    rows: int, vocab: int, backend: str, *, temperature: float, top_k: int, top_p: float
) -> Task:
    """A token for every row, all with the same settings."""

    def call(carry: Arrays, logits: Arrays) -> tuple[Arrays, Arrays]:
        sampling = SamplingArrays(
            temperature=jnp.full(rows, temperature, jnp.float32),
            top_p=jnp.full(rows, top_p, jnp.float32),
            top_k=jnp.full(rows, top_k, jnp.int32),
            min_p=jnp.zeros(rows, jnp.float32),
            seed=jnp.zeros((rows, 2), jnp.uint32),
            position=carry[0],
        )
        token_ids, _ = draw(logits[0], sampling, backend=backend)
        # The next draw waits for this one.
        return (carry[0] + 1 + (token_ids & 1),), logits

    settings = f"temperature {temperature:g}, top-k {top_k}, top-p {top_p:g}"
    return Task(
        name=f"{rows} x {vocab}, {settings if temperature else 'greedy'}",
        work=sampling_work(rows, vocab),
        set_bytes=rows * vocab * 4,
        make_carry=lambda: (jnp.arange(rows, dtype=jnp.int32),),
        make_set=lambda number: (3 * _normal(number, (rows, vocab), "float32"),),
        call=call,
    )


def sampling_work(rows: int, vocab: int) -> Work:
    """Logits are read once."""
    return Work(rows * vocab * 4)


def token_mask_task(rows: int, vocab: int, backend: str) -> Task:
    """A mask of its own for every row, in place."""
    words = -(-vocab // 32)

    def call(carry: Arrays, masks: Arrays) -> tuple[Arrays, Arrays]:
        mask_row = jnp.arange(rows, dtype=jnp.int32)
        return (mask_logits(carry[0], masks[0], mask_row, backend=backend),), masks

    return Task(
        name=f"{rows} x {vocab}",
        work=token_mask_work(rows, vocab),
        set_bytes=rows * words * 4,
        make_carry=lambda: (_normal(0, (rows, vocab), "float32"),),
        make_set=lambda number: (jax.random.bits(jax.random.key(number), (rows, words)),),
        call=call,
    )


def token_mask_work(rows: int, vocab: int) -> Work:
    """Logits are read and written, masks are read."""
    return Work(rows * vocab * (4 + 4 + 1 / 8))


def quant_matmul_task(
    scheme: str, tokens: int, outputs: int, inputs: int, backend: str, group: int = 128
) -> Task:
    """Tokens of bfloat16 times an int8, fp8 or int4 matrix, the last with groups and no zeros."""

    def make_set(number: int) -> Arrays:
        out = jnp.zeros((tokens, outputs), jnp.bfloat16)
        drawn = _normal(number, (outputs, inputs), "bfloat16")
        if scheme == "int4":
            bits = jax.random.bits(jax.random.key(number), (outputs, inputs // 2), "uint8")
            return out, bits, jnp.full((outputs, inputs // group), 0.01, jnp.float16)
        values = (32 * drawn).astype(jnp.int8) if scheme == "int8" else drawn.astype(FLOAT8)
        return out, values, jnp.full(outputs, 0.01, jnp.float32)

    def call(carry: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
        _, *matrix = arrays
        out = quant_matmul(carry[0], *matrix, dtype=jnp.bfloat16, backend=backend)
        # Or calls on the same set would be one.
        x, out = jax.lax.optimization_barrier((carry[0], out))
        return (x,), (out, *matrix)

    work = quant_matmul_work(scheme, tokens, outputs, inputs, group)
    return Task(
        name=f"{scheme} {tokens} x {outputs} x {inputs}",
        work=work,
        set_bytes=int(work.num_bytes),
        make_carry=lambda: (_normal(0, (tokens, inputs), "bfloat16"),),
        make_set=make_set,
        call=call,
    )


def quant_matmul_work(scheme: str, tokens: int, outputs: int, inputs: int, group: int) -> Work:
    """The matrix and tokens are read, products written."""
    weights = outputs * inputs
    matrix = weights / 2 + 2 * weights / group if scheme == "int4" else weights + 4 * outputs
    return Work(matrix + 2 * tokens * (inputs + outputs), 2.0 * tokens * weights)


def _pages_each(kv_len: int) -> int:
    return -(-kv_len // PAGE_SIZE)


def _page_table(rows: int, kv_len: int) -> jax.Array:
    """All pages that rows of this length take, in random order."""
    each = _pages_each(kv_len)
    pages = np.random.default_rng(0).permutation(rows * each).astype(np.int32)
    return jnp.asarray(pages.reshape(rows, each))


def _pages(heads: Heads, num_pages: int, dtype: str, number: int) -> Arrays:
    shape = (num_pages, PAGE_SIZE, heads.kv_heads, heads.head_dim)
    return _normal(2 * number, shape, dtype), _normal(2 * number + 1, shape, dtype)


def _cache_bytes(heads: Heads, num_pages: int, dtype: str) -> int:
    return 2 * num_pages * PAGE_SIZE * heads.kv_heads * heads.head_dim * _itemsize(dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    drawn = jnp.float32 if dtype == "float32" else jnp.bfloat16
    return jax.random.normal(jax.random.key(seed), shape, drawn).astype(dtype)


def _itemsize(dtype: str) -> int:
    return jnp.dtype(dtype).itemsize
