"""Packed arrays against the same rules written row by row."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgl.interface import SamplingParams
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.runner.batch import (
    NO_PAGE,
    draw_fields,
    forward_fields,
    pack_draw,
    pack_forward,
    unpack_forward,
)
from jaxsgl.runner.buckets import Bucket
from jaxsgl.runner.draw_record import DRAW_DTYPE, NEUTRAL_DRAW, as_ints, draw_record
from jaxsgl.runner.slot_state import state_allocator
from jaxsgl.runner.slot_updates import UPDATE_SIZES, pack_updates, update_fields, update_slots
from jaxsgl.step import LAST_TOKEN, SAMPLE, SCRATCH_PAGE, SlotOpening, StepPlan
from tests.fake_runner import make_limits
from tests.models.tiny import one_device_mesh, tiny_config

LAYOUT = resolve_layout(tiny_config(), one_device_mesh())
LIMITS = make_limits(page_size=4, num_slots=8, max_pages_per_row=8)
BUCKET = Bucket("mixed", 16, 6, 10)
SLOTS = [5, 0, 3]
Q_LEN = [3, 1, 6]
KV_LEN = [9, 14, 6]
SCORED = 17
"""Row 0 wants a token scored and a draw, row 1 a draw, row 2 nothing."""
PLAN = StepPlan(
    step_id=1,
    mode="mixed",
    slot=np.array(SLOTS, np.int32),
    q_start=np.array([0, 3, 4, 10], np.int32),
    token_ids=np.array([11, 12, 13, LAST_TOKEN, 21, 22, 23, 24, 25, 26], np.int32),
    kv_len=np.array(KV_LEN, np.int32),
    write_from=np.array([0, 0, 4], np.int32),
    logit_idx=np.array([1, 2, 3], np.int32),
    logit_start=np.array([0, 2, 3, 3], np.int32),
    logit_target=np.array([SCORED, SAMPLE, SAMPLE], np.int32),
    page_edits=np.zeros((0, 3), np.int32),
    num_top_logprobs=0,
)


PADDING = LIMITS.num_slots


def opening(slot, prompt_len, **sampling):
    token_ids = np.arange(prompt_len, dtype=np.int32)
    return SlotOpening(slot, SamplingParams(**sampling), token_ids, prompt_len, (2,))


def updated(state, plan):
    for size, vector in pack_updates(plan):
        state = update_slots(state, update_fields(size).unpack(jnp.asarray(vector)))
    return state


def slot_state():
    """Slots of the plan have pages 1 + 8 * slot + index, and have drawn token 100 + slot."""
    pages = [(slot, index, 1 + 8 * slot + index) for slot in SLOTS for index in range(4)]
    plan = dataclasses.replace(PLAN, page_edits=np.array(pages, np.int32))
    state = updated(state_allocator(LAYOUT, LIMITS)(), plan)
    return state._replace(last_token=jnp.arange(100, 109, dtype=jnp.int32))


def forward_batch(plan=PLAN, bucket=BUCKET):
    packed = jnp.asarray(pack_forward(plan, forward_fields(bucket), PADDING))
    return unpack_forward(bucket, packed, slot_state(), LIMITS.page_size)


def test_forward_arrays_follow_every_token():
    batch, token = forward_batch(), 0
    for slot, q_len, kv_len, start in zip(SLOTS, Q_LEN, KV_LEN, PLAN.write_from, strict=True):
        for position in range(kv_len - q_len, kv_len):
            given = PLAN.token_ids[token]
            assert batch.token_ids[token] == (100 + slot if given == LAST_TOKEN else given)
            assert batch.positions[token] == position
            page = 1 + 8 * slot + position // 4 if position >= start else NO_PAGE
            assert batch.write_page[token] == page
            assert batch.write_offset[token] == position % 4
            token += 1
    np.testing.assert_array_equal(batch.q_start, [0, 3, 4, 10, 10, 10, 10])
    np.testing.assert_array_equal(batch.kv_len, [*KV_LEN, 0, 0, 0])
    np.testing.assert_array_equal(batch.page_table[:3], slot_state().page_table[jnp.array(SLOTS)])
    np.testing.assert_array_equal(batch.logit_idx[:3], PLAN.logit_idx)


def test_padding_of_the_forward_writes_nowhere():
    batch = forward_batch()
    assert (batch.write_page[10:] == NO_PAGE).all()
    assert (batch.positions[10:] == 0).all()
    assert (batch.page_table[3:] == SCRATCH_PAGE).all()
    assert (batch.token_ids[10:] == 0).all()


def test_a_decode_batch_follows_from_its_rows():
    plan = dataclasses.replace(
        PLAN,
        mode="decode",
        q_start=np.arange(4, dtype=np.int32),
        token_ids=np.array([11, LAST_TOKEN, 21], np.int32),
        write_from=np.array([0, 0, 8], np.int32),
    )
    batch = forward_batch(plan, Bucket("decode", 4, 4, 6))
    np.testing.assert_array_equal(batch.token_ids, [11, 100, 21, 0])
    np.testing.assert_array_equal(batch.positions, [8, 13, 5, 0])
    np.testing.assert_array_equal(batch.write_page, [1 + 8 * 5 + 2, 1 + 3, NO_PAGE, NO_PAGE])
    np.testing.assert_array_equal(batch.write_offset, [0, 1, 1, 0])
    np.testing.assert_array_equal(batch.logit_idx, [0, 1, 2, 3, 3, 3])


def draw_arrays(plan=PLAN):
    fields = draw_fields(BUCKET.num_logits)
    return fields.unpack(jnp.asarray(pack_draw(plan, fields, PADDING)))


def test_draw_arrays_follow_every_wanted_logit():
    arrays = draw_arrays()
    np.testing.assert_array_equal(arrays["target"][:3], PLAN.logit_target)
    np.testing.assert_array_equal(arrays["slot"][:3], [5, 5, 0])
    # Row 0's tokens have positions 6, 7 and 8, its wanted logits are of the second and third.
    np.testing.assert_array_equal(arrays["position"][:3], [8, 9, 14])
    np.testing.assert_array_equal(arrays["stores"][:3], [0, 1, 1])
    assert arrays["want_logprobs"] == 1


def test_padding_of_the_draw_stores_nothing():
    arrays = draw_arrays()
    assert (arrays["slot"][3:] == PADDING).all()
    assert (arrays["stores"][3:] == 0).all()
    assert (arrays["target"][3:] == SAMPLE).all()


def test_a_scored_last_token_is_not_stored():
    target = np.array([SCORED, SCORED, SAMPLE], np.int32)
    arrays = draw_arrays(dataclasses.replace(PLAN, logit_target=target))
    np.testing.assert_array_equal(arrays["stores"][:3], [0, 0, 1])


def test_draw_records_hold_the_sampling_parameters():
    record = draw_record(opening(5, 8, seed=-3, temperature=0.5, top_k=7)).view(DRAW_DTYPE)[0]
    assert (record["temperature"], record["top_k"]) == (0.5, 7)
    assert (record["seed_low"], record["seed_high"]) == (2**32 - 3, 2**32 - 1)
    assert record["min_len"] == 0
    longer = draw_record(opening(0, 10, seed=2**40 + 9, min_tokens=5, frequency_penalty=0.25))
    record = longer.view(DRAW_DTYPE)[0]
    assert (record["seed_low"], record["seed_high"]) == (9, 2**8)
    assert (record["min_len"], record["frequency_penalty"]) == (15, 0.25)


@pytest.mark.parametrize("num_edits", [1, 64, 65, 2 * UPDATE_SIZES[-1].num_edits + 1])
def test_any_number_of_edits_reaches_the_page_table(num_edits):
    limits = make_limits(num_slots=64, max_pages_per_row=80)
    places = np.random.default_rng(0).permutation(64 * 80)[:num_edits]
    expected = np.zeros((65, 80), np.int32)
    expected[places // 80, places % 80] = 1 + places
    edits = np.stack([places // 80, places % 80, 1 + places], 1).astype(np.int32)
    plan = dataclasses.replace(PLAN, page_edits=edits)
    state = updated(state_allocator(LAYOUT, limits)(), plan)
    np.testing.assert_array_equal(state.page_table, expected)


@pytest.mark.parametrize("num_openings", [1, 8, 9, 300])
def test_any_number_of_openings_reaches_the_records(num_openings):
    limits = make_limits(num_slots=300)
    openings = tuple(opening(slot, 3, seed=slot, top_k=slot + 1) for slot in range(num_openings))
    before = state_allocator(LAYOUT, limits)()
    assert (before.draws == as_ints(NEUTRAL_DRAW)).all()
    state = updated(before, dataclasses.replace(PLAN, openings=openings))
    expected = np.stack([draw_record(each) for each in openings])
    np.testing.assert_array_equal(state.draws[:num_openings], expected)
    np.testing.assert_array_equal(state.draws[num_openings:], before.draws[num_openings:])


def test_a_plan_that_changes_nothing_costs_nothing():
    assert list(pack_updates(PLAN)) == []
