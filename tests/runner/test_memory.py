"""How a device's memory is shared out."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.models.llama import Llama
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.weights import device_bytes, load_weights, loading_bytes
from jaxsgl.runner.buckets import make_buckets
from jaxsgl.runner.build import step_sizes
from jaxsgl.runner.memory import GIB, MARGIN_BYTES, MemoryPlan, step_bytes
from jaxsgl.runner.platform import PLATFORMS
from jaxsgl.runner.programs import Programs
from tests.models.tiny import RandomModel, one_device_mesh, tiny_config

PLAN = MemoryPlan(
    limit=70 * GIB,
    in_use=GIB,
    weights=15 * GIB,
    slots=GIB // 4,
    loading=0,
    steps=2 * GIB,
    page=2**21,
    num_pages=1000,
)


def test_everything_is_accounted_for():
    taken = PLAN.in_use + PLAN.weights + PLAN.slots + PLAN.steps + 1000 * 2**21
    assert PLAN.margin > MARGIN_BYTES
    assert PLAN.free == 70 * GIB - taken - PLAN.margin
    PLAN.require_room()
    lines = PLAN.table().splitlines()
    assert [line.split()[-2] for line in lines] == [
        "70.00", "1.00", "15.00", "0.25", "2.00", "1.95", "2.44", f"{PLAN.free / GIB:.2f}",
    ]  # fmt: skip


@pytest.mark.parametrize("change", [{"num_pages": 40000}, {"weights": 70 * GIB}, {"num_pages": 1}])
def test_what_does_not_fit_is_refused_with_the_table(change):
    plan = dataclasses.replace(PLAN, **change)
    with pytest.raises(ConfigError, match="does not fit") as error:
        plan.require_room()
    assert plan.table() in str(error.value)


def test_steps_that_were_estimated_too_low_may_take_of_the_margin():
    most = PLAN.margin // 4
    larger = dataclasses.replace(PLAN, steps=PLAN.steps + PLAN.free + most)
    assert larger.free == -most
    larger.require_room(from_margin=most)
    for refused in (larger, dataclasses.replace(larger, steps=larger.steps + 1)):
        with pytest.raises(ConfigError, match="left over"):
            refused.require_room(from_margin=most - 1)


def test_loading_has_the_margin_to_itself_and_more_if_need_be():
    within = dataclasses.replace(PLAN, loading=PLAN.margin - MARGIN_BYTES)
    assert within.margin == PLAN.margin
    beyond = dataclasses.replace(PLAN, loading=within.loading + 1)
    assert (beyond.margin, beyond.free) == (PLAN.margin + 1, PLAN.free - 1)
    for plan, is_named in ((within, False), (beyond, True)):
        assert ("margin, for loading" in plan.table()) == is_named


def test_temporaries_of_loading_count_beyond_weights_to_come():
    few = tiny_config(vocab_size=4096, num_layers=1)
    layout = resolve_layout(few, one_device_mesh())
    embedding, rest = 4096 * 64, device_bytes(Llama(few, layout, jnp.bfloat16), layout)
    rest -= 2 * embedding
    assert loading_bytes(Llama(few, layout, jnp.bfloat16), layout) == 8 * embedding - rest
    # With many layers only those of the last, the smallest: the matrix of attention's output.
    many = dataclasses.replace(few, num_layers=64)
    assert loading_bytes(Llama(many, layout, jnp.bfloat16), layout) == 8 * 64 * 64


def test_weights_are_counted_before_they_are_loaded():
    config = tiny_config()
    layout = resolve_layout(config, one_device_mesh())
    loaded = load_weights(Llama, config, RandomModel(config), layout, jnp.bfloat16)
    num_bytes = sum(array.nbytes for array in jax.tree.leaves(loaded))
    assert device_bytes(Llama(config, layout, jnp.bfloat16), layout) == num_bytes


def test_the_estimate_of_a_step_is_above_what_is_compiled():
    """Of a model with more in its layers than in its logits, as real ones are."""
    config = tiny_config(hidden_size=256, mlp_size=1024, context_len=2048)
    layout = resolve_layout(config, one_device_mesh())
    limits = step_sizes(EngineConfig(chunked_prefill_size=512), config, PLATFORMS["cpu"], "xla")
    limits = dataclasses.replace(limits, num_pages=64)
    buckets = make_buckets(limits, PLATFORMS["cpu"].sizes)[-2:]
    model = Llama(config, layout, jnp.float32)
    programs = Programs(
        model, config, layout, limits, buckets, jnp.float32, PLATFORMS["cpu"], "xla"
    )
    measured = programs.compile(lambda done, total: None)
    assert measured <= step_bytes(config, limits, 4) + MARGIN_BYTES
