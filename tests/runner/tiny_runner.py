"""Runners of tiny models, quick to compile."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxsgl.models.quantization.codes import Scheme
from jaxsgl.models.quantization.family import quantized_family
from jaxsgl.models.registry import model_class
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.sharding_rules import MEGATRON, ShardingRules
from jaxsgl.models.weights import load_weights
from jaxsgl.runner.buckets import Bucket
from jaxsgl.runner.platform import PLATFORMS, Platform
from jaxsgl.runner.programs import Programs
from jaxsgl.runner.runner import ModelRunner
from jaxsgl.runner.sampler import DRAW_KINDS
from jaxsgl.runner.weight_source import ModelSource, OtherWeights, WeightForm
from jaxsgl.step import StepLimits
from tests.models.tiny import one_device_mesh

LIMITS = StepLimits(
    num_pages=129,
    page_size=4,
    num_slots=16,
    max_rows=16,
    max_tokens=64,
    max_logits=64,
    max_pages_per_row=32,
    vocab_size=128,
    chain_len=4,
)
CPU = dataclasses.replace(PLATFORMS["cpu"], draw_kinds=DRAW_KINDS)
"""With every way to draw, as where a step needs the least."""
BUCKETS = (
    Bucket("decode", 1, 1, 1),
    Bucket("decode", 16, 16, 16),
    Bucket("mixed", 64, 16, 16),
    Bucket("mixed", 64, 16, 64),
)
"""As few as will do: each takes seconds to compile."""
FEWEST_BUCKETS = (Bucket("decode", 4, 4, 4), Bucket("mixed", 64, 4, 4))
CHAIN = Bucket("chain", 16, 4, 16)


def make_runner(
    model: ModelSource,
    mesh: Mesh | None = None,
    buckets: tuple[Bucket, ...] = BUCKETS,
    platform: Platform = CPU,
    rules: ShardingRules = MEGATRON,
    scheme: Scheme | None = None,
    kv_dtype: DTypeLike = jnp.float32,
) -> ModelRunner:
    """A runner that is ready. With 4 bits groups are the smallest, as they may be on any mesh."""
    config = model.config
    layout = resolve_layout(
        config, mesh or one_device_mesh(), rules, matrix_order=platform.matrix_order
    )
    limits = dataclasses.replace(LIMITS, vocab_size=config.vocab_size)
    family = quantized_family(model_class(config.architecture), scheme, scheme, max_group=32)
    loaded = load_weights(family, config, model, layout, jnp.float32)
    programs = Programs(loaded, config, layout, limits, buckets, kv_dtype, platform, "xla")
    source = OtherWeights(config, WeightForm(family, None), layout, jnp.float32, seed=0)
    programs.compile(lambda done, total: None)
    runner = ModelRunner(loaded, programs, source)
    runner.warm_up()
    return runner
