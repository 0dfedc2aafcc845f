"""The paged KV arrays on the mesh."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxsgl.models.attention import KVPages
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.sharding import Layout


def kv_allocator(
    config: ModelConfig, layout: Layout, num_pages: int, page_size: int, dtype: DTypeLike
) -> Callable[[], KVPages]:
    """A compiled function that returns zeroed pages for every layer, kv heads spread as laid out.

    Each step takes them as donated arguments and writes them in place.
    """
    kv_heads = config.num_kv_heads * layout.kv_repeat
    shape = (config.num_layers * num_pages, page_size, kv_heads, config.head_dim)

    def allocate() -> KVPages:
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.cache_arrays))

    return jax.jit(allocate, out_shardings=layout.sharding(None, None, "kv_heads", None))


def page_bytes(config: ModelConfig, layout: Layout, page_size: int, dtype: DTypeLike) -> int:
    """Bytes that one page of all layers takes on each device."""
    kv_heads = config.num_kv_heads * layout.kv_repeat // layout.num_parts("kv_heads")
    arrays = config.cache_arrays * config.num_layers
    per_token = arrays * kv_heads * config.head_dim * jnp.dtype(dtype).itemsize
    return per_token * page_size
