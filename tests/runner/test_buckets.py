import dataclasses

import numpy as np
import pytest

from jaxsgl.runner.buckets import Bucket, Sizes, make_buckets, pick_bucket
from jaxsgl.runner.platform import PLATFORMS
from jaxsgl.step import StepPlan
from tests.fake_runner import make_limits

CPU = dataclasses.replace(make_limits(), num_slots=16, max_rows=16, max_tokens=256, max_logits=256)


def plan(mode, q_lens, num_logits=None):
    rows, tokens = len(q_lens), sum(q_lens)
    logits = rows if num_logits is None else num_logits
    zeros = np.zeros(tokens, np.int32)
    return StepPlan(
        step_id=0,
        mode=mode,
        slot=np.arange(rows, dtype=np.int32),
        q_start=np.cumsum([0, *q_lens], dtype=np.int32),
        token_ids=zeros,
        kv_len=np.array(q_lens, np.int32),
        write_from=np.zeros(rows, np.int32),
        logit_idx=np.arange(logits, dtype=np.int32),
        logit_start=np.linspace(0, logits, rows + 1).astype(np.int32),
        logit_target=np.full(logits, -1, np.int32),
        page_edits=np.zeros((0, 3), np.int32),
    )


def test_programs_on_a_cpu_are_few():
    assert make_buckets(CPU, PLATFORMS["cpu"].sizes) == (
        Bucket("decode", 1, 1, 1),
        Bucket("decode", 2, 2, 4),
        Bucket("decode", 4, 4, 4),
        Bucket("decode", 8, 8, 8),
        Bucket("decode", 16, 16, 16),
        Bucket("mixed", 16, 16, 16),
        Bucket("mixed", 64, 16, 16),
        Bucket("mixed", 256, 16, 16),
        Bucket("mixed", 256, 16, 256),
    )


def test_every_size_up_to_the_limits_has_a_bucket_of_its_own_maximum():
    limits = dataclasses.replace(CPU, max_rows=150, max_tokens=1000, max_logits=150)
    buckets = make_buckets(limits, PLATFORMS["gpu"].sizes)
    assert [b.num_rows for b in buckets if b.mode == "decode"][-3:] == [64, 128, 150]
    assert [b.num_tokens for b in buckets if b.mode == "mixed"][-2:] == [512, 1000]
    assert all(b.num_rows <= b.num_tokens and b.num_rows <= b.num_logits for b in buckets)


@pytest.mark.parametrize("name", sorted(PLATFORMS))
def test_a_prompt_is_never_multiplied_with_the_head_as_a_single_row(name):
    """Also where there is one row at most; a step that only decodes is."""
    limits = dataclasses.replace(CPU, max_rows=1, max_tokens=1024, max_logits=1024)
    buckets = make_buckets(limits, PLATFORMS[name].sizes)
    assert {b.num_logits for b in buckets if b.mode == "mixed"} == {2, 1024}
    assert {b.num_logits for b in buckets if b.mode == "decode"} == {1}


def test_logits_have_fewer_sizes_than_rows():
    sizes = Sizes(decode_rows=(1, 2, 5), shared_rows=(), mixed_tokens=(4,), logits=(1, 5))
    limits = dataclasses.replace(CPU, max_rows=7, max_tokens=9, max_logits=7)
    assert make_buckets(limits, sizes) == (
        Bucket("decode", 1, 1, 1),
        Bucket("decode", 2, 2, 5),
        Bucket("decode", 5, 5, 5),
        Bucket("decode", 7, 7, 7),
        Bucket("mixed", 4, 4, 5),
        Bucket("mixed", 9, 7, 7),
    )


@pytest.mark.parametrize(
    ("mode", "q_lens", "num_logits", "name"),
    [
        ("decode", [1], None, "decode_1x1"),
        ("decode", [1] * 3, None, "decode_4x4"),
        ("decode", [1] * 16, None, "decode_16x16"),
        ("mixed", [5], None, "mixed_16x16"),
        ("mixed", [1, 1, 15], None, "mixed_64x16"),
        ("mixed", [256], 0, "mixed_256x16"),
        ("mixed", [20], 20, "mixed_256x256"),
    ],
)
def test_the_smallest_bucket_that_fits_is_taken(mode, q_lens, num_logits, name):
    buckets = make_buckets(CPU, PLATFORMS["cpu"].sizes)
    assert pick_bucket(buckets, plan(mode, q_lens, num_logits)).name == name


@pytest.mark.parametrize(
    "beyond", [plan("decode", [1] * 17), plan("mixed", [257]), plan("mixed", [1] * 17)]
)
def test_a_plan_beyond_the_limits_is_refused(beyond):
    with pytest.raises(ValueError, match=r"no (decode|mixed) program for"):
        pick_bucket(make_buckets(CPU, PLATFORMS["cpu"].sizes), beyond)


def test_steps_that_share_prefixes_have_buckets_where_that_is_to_be_had():
    sizes = PLATFORMS["gpu"].sizes
    limits = dataclasses.replace(CPU, max_rows=150, max_tokens=1000, max_logits=150)
    assert all(bucket.mode != "shared" for bucket in make_buckets(limits, sizes))
    buckets = make_buckets(dataclasses.replace(limits, pack_rows=16), sizes)
    assert pick_bucket(buckets, plan("shared", [1] * 100)).name == "shared_128x128"
    assert pick_bucket(buckets, plan("decode", [1] * 100)).name == "decode_128x128"
    # Beyond the largest it is a decode step like any other.
    assert pick_bucket(buckets, plan("shared", [1] * 140)).name == "decode_150x150"
