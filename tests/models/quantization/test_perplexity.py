"""What rounding costs the default model, on the text of `bench.perplexity`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bench.perplexity import TEXT
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.default_model import default_model_path
from jaxsgl.models.attention import AttentionKind, ForwardBatch
from jaxsgl.models.quantization.codes import Scheme
from jaxsgl.models.quantization.family import quantized_family
from jaxsgl.models.registry import model_class
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.weights import load_weights
from jaxsgl.tokenizer import load_tokenizer
from tests.models.tiny import one_device_mesh

WINDOW_LEN = 1024
NUM_WINDOWS = 19
"""19,456 tokens in all, each window on its own."""
PAGE_SIZE = 16


def perplexity(
    scheme: Scheme | None, kv_dtype: Any = jnp.float32, num_windows: int = NUM_WINDOWS
) -> float:
    checkpoint: Any = open_checkpoint(default_model_path())
    tokenizer = load_tokenizer(checkpoint.tokenizer_source, None)
    token_ids = jnp.asarray(tokenizer.encode(TEXT.read_text(encoding="utf-8")), jnp.int32)
    assert len(token_ids) >= num_windows * WINDOW_LEN
    config = checkpoint.config
    layout = resolve_layout(config, one_device_mesh())
    family = quantized_family(model_class(config.architecture), scheme, scheme)
    model = load_weights(family, config, checkpoint, layout, jnp.float32)
    shape = (WINDOW_LEN // PAGE_SIZE + 1, PAGE_SIZE, config.num_kv_heads, config.head_dim)
    pages = jnp.zeros(shape, kv_dtype)
    kv = ((pages, pages),) * config.num_layers
    losses = [
        float(_loss(model, token_ids[start : start + WINDOW_LEN], kv))
        for start in range(0, num_windows * WINDOW_LEN, WINDOW_LEN)
    ]
    return float(jnp.exp(jnp.mean(jnp.asarray(losses))))


@jax.jit
def _loss(model: Any, token_ids: jax.Array, kv: Any) -> jax.Array:
    """Nats per token of one window, the first not counted."""
    place = jnp.arange(WINDOW_LEN, dtype=jnp.int32)
    batch = ForwardBatch(
        token_ids=token_ids,
        positions=place,
        write_page=1 + place // PAGE_SIZE,
        write_offset=place % PAGE_SIZE,
        q_start=jnp.array([0, WINDOW_LEN], jnp.int32),
        kv_len=jnp.array([WINDOW_LEN], jnp.int32),
        page_table=1 + jnp.arange(WINDOW_LEN // PAGE_SIZE, dtype=jnp.int32)[None],
        logit_idx=place,
    )
    logits, _ = model(batch, kv, AttentionKind("mixed", "xla"))
    scores = jax.nn.log_softmax(logits[:-1])
    return -jnp.take_along_axis(scores, token_ids[1:, None], axis=1).mean()


@functools.cache
def original() -> float:
    return perplexity(None)


@pytest.mark.long
@pytest.mark.parametrize(
    ("scheme", "kv_dtype", "allowed"),
    [
        ("int8", jnp.float32, 0.005),
        pytest.param(
            "fp8",
            jnp.float32,
            0.015,
            marks=pytest.mark.xfail(strict=True, reason="it grows by 1.7 %; the aim is 1.5 %"),
        ),
        (None, jnp.float8_e4m3fn, 0.005),
    ],
    ids=["int8", "fp8", "float8-pages"],
)
def test_perplexity_hardly_grows(scheme: Scheme | None, kv_dtype: Any, allowed: float) -> None:
    grown = perplexity(scheme, kv_dtype) / original() - 1
    assert grown != 0
    assert grown <= allowed
