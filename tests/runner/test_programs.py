"""What the forward programs do to the pages: only what they must, in place, in every bucket."""

import dataclasses
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from jaxsgl.models.attention import AttentionKind
from jaxsgl.models.llama import Llama
from jaxsgl.models.quantization.family import quantized_family
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.weights import load_weights
from jaxsgl.runner.batch import forward_fields, pack_forward, unpack_forward
from jaxsgl.runner.buckets import Bucket
from jaxsgl.runner.platform import PLATFORMS
from jaxsgl.runner.programs import (
    Programs,
    draw_program,
    forward_program,
    split_model,
    split_weights,
)
from jaxsgl.runner.slot_state import split_state, state_allocator
from jaxsgl.step import StepPacks, StepPlan
from tests.models.tiny import RandomModel, one_device_mesh, tiny_config
from tests.runner.tiny_runner import CPU, LIMITS

TARGETS = {
    "cuda": (
        AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu"),
        PLATFORMS["gpu"],
    ),
    "tpu": (AbstractDevice("TPU v5e", num_cores=1, platform="tpu"), PLATFORMS["tpu"]),
}
CONFIG = tiny_config()
LAYOUT = resolve_layout(CONFIG, one_device_mesh())
KV_SHAPE = (LIMITS.num_pages, LIMITS.page_size, CONFIG.num_kv_heads, CONFIG.head_dim)
DECODE = [Bucket("decode", n, n, n) for n in (3, 4, 8, 16)]
MIXED = [Bucket("mixed", *sizes) for sizes in ((14, 4, 4), (16, 16, 16), (64, 16, 16))]


def on_device(target):
    """A context in which programs lower for a device that is not there."""
    mesh = AbstractMesh((), (), abstract_device=TARGETS[target][0])
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.fixture(scope="module")
def model():
    return load_weights(Llama, CONFIG, RandomModel(CONFIG), LAYOUT, jnp.float32)


def random_pages():
    """Keys and values of each layer."""
    draw = np.random.default_rng(0)
    return [[draw.standard_normal(KV_SHAPE, np.float32) for _ in "kv"] for _ in range(2)]


def plan(mode):
    """Rows in slots 4, 9 and 2, with 1 token each or with 5, 1 and 8, far into their sequences."""
    q_len = [1, 1, 1] if mode == "decode" else [5, 1, 8]
    q_start = np.cumsum([0, *q_len], dtype=np.int32)
    return StepPlan(
        step_id=0,
        mode=mode,
        slot=np.array([4, 9, 2], np.int32),
        q_start=q_start,
        token_ids=np.arange(20, 20 + q_start[-1], dtype=np.int32),
        kv_len=np.array([17, 3, 8], np.int32),
        write_from=np.zeros(3, np.int32),
        logit_idx=q_start[1:] - 1,
        logit_start=np.arange(4, dtype=np.int32),
        logit_target=np.full(3, -1, np.int32),
        page_edits=np.zeros((0, 3), np.int32),
    )


def page_table():
    table = np.zeros((LIMITS.num_slots + 1, LIMITS.max_pages_per_row), np.int32)
    pages = np.random.default_rng(1).permutation(np.arange(1, LIMITS.num_pages))
    table[[4, 9, 2], :5] = pages[:15].reshape(3, 5)
    return table


def run(model, bucket, step=None):
    """Logits of the real rows, and each layer's pages afterwards."""
    fields, forward = program(model, bucket)
    vector = pack_forward(step or plan(bucket.mode), fields, LIMITS.num_slots)
    kv = tuple(jnp.concatenate(layers) for layers in zip(*random_pages(), strict=True))
    state = state_allocator(LAYOUT, LIMITS)()._replace(page_table=jnp.array(page_table()))
    logits, _, kv = forward(split_weights(model), kv, state, jnp.asarray(vector))
    layers = zip(*(np.split(np.asarray(pages), CONFIG.num_layers) for pages in kv), strict=True)
    return np.asarray(logits)[:3], [list(layer) for layer in layers]


def program(model, bucket):
    join, _ = split_model(model, LAYOUT)
    kind = AttentionKind(bucket.mode, "xla")
    return forward_program(join, LAYOUT, bucket, LIMITS.page_size, kind, {})


def written(mode):
    """Mask [pages, page_size] of the places that the plan's tokens, or padding, may write."""
    mask = np.zeros(KV_SHAPE[:2], np.bool_)
    mask[0] = True
    table, step = page_table(), plan(mode)
    for slot, kv_len, q_len in zip(step.slot, step.kv_len, np.diff(step.q_start), strict=True):
        for position in range(kv_len - q_len, kv_len):
            mask[table[slot, position // 4], position % 4] = True
    return mask


@pytest.mark.parametrize("buckets", [DECODE, MIXED], ids=["decode", "mixed"])
def test_every_bucket_that_fits_gives_the_same(model, buckets):
    """Up to rounding: products of other sizes add in another order. Logits are of size 4."""
    logits, kv = run(model, buckets[0])
    assert 2.0 < np.abs(logits).max() < 8.0
    for bucket in buckets[1:]:
        other_logits, other_kv = run(model, bucket)
        np.testing.assert_allclose(other_logits, logits, atol=1e-4)
        for pages, other_pages in zip(kv, other_kv, strict=True):
            for one, other in zip(pages, other_pages, strict=True):
                np.testing.assert_allclose(other[1:], one[1:], atol=1e-5)


@pytest.mark.parametrize("bucket", [*DECODE, *MIXED], ids=lambda bucket: bucket.name)
def test_pages_that_are_not_written_stay_as_they_were(model, bucket):
    _, kv = run(model, bucket)
    mask = written(bucket.mode)
    for before, after in zip(random_pages(), kv, strict=True):
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(new[~mask], old[~mask])
            assert (new[mask][4:] != old[mask][4:]).any(axis=(1, 2)).all()


@pytest.mark.parametrize("bucket", [DECODE[0], MIXED[0]], ids=lambda bucket: bucket.name)
def test_shared_tokens_that_are_computed_again_are_not_written(model, bucket):
    step = plan(bucket.mode)
    shared = dataclasses.replace(step, write_from=np.array([17, 2, 8], np.int32))
    logits, kv = run(model, bucket, shared)
    assert np.isfinite(logits).all()
    mask = np.zeros(KV_SHAPE[:2], np.bool_)
    mask[0] = True
    mask[page_table()[9, 0], 2] = True  # slot 9's only new token
    for before, after in zip(random_pages(), kv, strict=True):
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(new[~mask], old[~mask])
            assert (new[page_table()[9, 0], 2] != old[page_table()[9, 0], 2]).all()


def test_the_comparison_of_buckets_notices_another_row(model):
    """The control: logits of neighbouring rows are far apart."""
    logits, _ = run(model, DECODE[0])
    assert np.abs(logits[1:] - logits[:-1]).max(axis=1).min() > 0.1


def test_slot_state_is_updated_in_place():
    """The counts are too large to copy in every step."""
    draw = draw_program(LAYOUT, 16, "full", "xla")
    state = jax.eval_shape(state_allocator(LAYOUT, LIMITS))
    logits = jax.ShapeDtypeStruct((16, LIMITS.vocab_size), jnp.float32)
    vector = jax.ShapeDtypeStruct((draw.fields.size,), jnp.int32)
    written, rest = split_state(state, draw.writes)
    compiled = draw.run_parts.lower(written, rest, logits, vector).compile()
    written_bytes = sum(array.size * array.dtype.itemsize for array in written.values())
    assert compiled.memory_analysis().alias_size_in_bytes == written_bytes
    shape = ",".join(map(str, state.output_counts.shape))
    assert f"s32[{shape}]" in compiled.as_text()
    assert not copies_of(f"s32[{shape}]", compiled.as_text())


def copies_of(array_type: str, hlo: str) -> list[str]:
    return [
        line
        for line in hlo.splitlines()
        if re.search(rf"= {re.escape(array_type)}\S* copy\(", line)
    ]


def test_a_copy_is_noticed():
    """The control: an array that is not donated has to be copied to be written."""
    write = jax.jit(lambda pages: pages.at[3].set(1.0))
    hlo = write.lower(jax.ShapeDtypeStruct((64, 8), jnp.float32)).compile().as_text()
    assert copies_of("f32[64,8]", hlo)


@pytest.mark.parametrize("bucket", [DECODE[-1], MIXED[-1]], ids=lambda bucket: bucket.name)
def test_pages_are_written_in_place(model, bucket):
    fields, forward = program(model, bucket)
    whole = (CONFIG.num_layers * KV_SHAPE[0], *KV_SHAPE[1:])
    kv = (jax.ShapeDtypeStruct(whole, jnp.float32),) * 2
    state = jax.eval_shape(state_allocator(LAYOUT, LIMITS))
    vector = jax.ShapeDtypeStruct((fields.size,), jnp.int32)
    compiled = forward.lower(split_weights(model), kv, state, vector).compile()
    kv_bytes = sum(pages.size * 4 for pages in jax.tree.leaves(kv))
    assert compiled.memory_analysis().alias_size_in_bytes == kv_bytes
    shape = ",".join(map(str, whole))
    assert f"f32[{shape}]" in compiled.as_text()
    assert not copies_of(f"f32[{shape}]", compiled.as_text())


@pytest.mark.parametrize("target", ["cuda", "tpu"])
def test_every_program_lowers_without_the_device(target):
    """With its kernels, its way of keeping matrices and all its ways to draw."""
    _, platform = TARGETS[target]
    config = tiny_config(head_dim=128)
    limits = dataclasses.replace(LIMITS, page_size=16)
    layout = resolve_layout(config, one_device_mesh(), matrix_order=platform.matrix_order)
    assert layout.notes == ()
    model = Llama(config, layout, jnp.bfloat16)
    buckets = [DECODE[1], MIXED[1]]
    backend = platform.backends[0]
    programs = Programs(model, config, layout, limits, buckets, jnp.bfloat16, platform, backend)
    with on_device(target):
        lowered = {
            call.kind: call.run.trace(*call.args).lower(lowering_platforms=(target,)).as_text()
            for call in programs.calls()
        }
    assert set(lowered) == {"forward", "draw", "mask", "slots"}
    kernel = "__gpu$xla.gpu.triton" if target == "cuda" else "tpu_custom_call"
    with_kernels = {kind for kind, text in lowered.items() if kernel in text}
    assert with_kernels == ({"forward", "draw", "mask"} if target == "cuda" else {"forward"})


def test_the_last_layer_ends_with_the_tokens_whose_logits_are_wanted():
    """Where those are fewer. The queries, keys and values are those of all."""
    few, all_of_them, decode = MIXED[2], MIXED[1], DECODE[3]
    model = Llama(CONFIG, LAYOUT, jnp.bfloat16)
    programs = Programs(
        model, CONFIG, LAYOUT, LIMITS, [few, all_of_them, decode], jnp.bfloat16, CPU, "xla"
    )
    rows = {
        call.key: Counter(rows_of_products(call))
        for call in programs.calls()
        if call.kind == "forward"
    }
    # Four products of a layer, written down once for all that are alike, and the head's.
    assert rows == {few: {64: 4 + 1, 16: 3 + 1}, all_of_them: {16: 4 + 1}, decode: {16: 4 + 1}}


def rows_of_products(call):
    """Of every product with a matrix."""
    lowered = call.run.trace(*call.args).lower(lowering_platforms=("cuda",)).as_text()
    products = re.findall(r"dot_general .* -> tensor<(\d+)x\d+xb?f\d+>", lowered)
    return map(int, products)


def test_a_shared_step_is_told_what_its_packs_have_in_common():
    bucket = Bucket("shared", 32, 32, 32)
    step = dataclasses.replace(
        plan("decode"),
        mode="shared",
        packs=StepPacks(np.array([0, 2, 3], np.int32), np.array([4, 0], np.int32)),
    )
    batch = unpack_forward(
        bucket,
        jnp.asarray(pack_forward(step, forward_fields(bucket), LIMITS.num_slots)),
        state_allocator(LAYOUT, LIMITS)(),
        LIMITS.page_size,
    )
    assert batch.shared is not None
    assert batch.shared.pack_start.tolist() == [0, 2, 3, 3, 3]
    assert batch.shared.shared_len.tolist() == [4, 0, 0, 0]
    assert batch.kv_len.tolist() == [*step.kv_len, *[0] * 29]


@pytest.mark.parametrize("scheme", ["int8", "fp8", "int4"])
def test_a_gpu_s_decode_steps_multiply_quantised_matrices_with_the_kernel(scheme):
    layout = resolve_layout(CONFIG, one_device_mesh(), matrix_order="inputs first")
    kernels = {}
    for name in (None, scheme):
        model = quantized_family(Llama, name, name)(CONFIG, layout, jnp.bfloat16)
        programs = Programs(
            model, CONFIG, layout, LIMITS, DECODE[1:2], jnp.bfloat16, PLATFORMS["gpu"], "triton"
        )
        forward = next(call for call in programs.calls() if call.kind == "forward")
        with on_device("cuda"):
            lowered = forward.run.trace(*forward.args).lower(lowering_platforms=("cuda",)).as_text()
        kernels[name] = lowered.count('name = "quant_matmul"')
    assert kernels[None] == 0
    assert kernels[scheme] == 4  # qkv, out, gate and up, down: traced once for all layers
