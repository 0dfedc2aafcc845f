"""Token masks against a reference that looks at one token at a time."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from pallas_kernels.token_mask import cases, reference
from pallas_kernels.token_mask.api import mask_logits
from tests.kernels.op_suite import OnGpu, ids

jit_mask_logits = jax.jit(mask_logits, static_argnames="backend")
BENCHMARK = cases.Case("a large batch", 64, 128256, num_masks=20)


def mistakes(inputs: cases.Inputs) -> dict[str, NDArray[np.float32]]:
    """What an implementation with one mistake would return."""
    logits, masks, mask_row = inputs
    as_bytes = masks.view(np.uint8)
    bits = np.unpackbits(as_bytes, axis=1, bitorder="big")
    big_endian = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    wrong_masks = {
        "nothing done": np.full_like(masks, 2**32 - 1),
        "complement": ~masks,
        "bits in the other order": big_endian,
        "words shifted by one": np.roll(masks, 1, axis=1),
        "another row's mask": np.roll(masks, 1, axis=0),
    }
    wrong = {
        mistake: reference.mask_logits(logits, masks, mask_row)
        for mistake, masks in wrong_masks.items()
    }
    wrong["every row masked"] = reference.mask_logits(logits, masks, np.maximum(mask_row, 0))
    return wrong


class TokenMaskSuite:
    backend: ClassVar[str]

    @ids(cases.CASES)
    def test_equals_the_reference(self, case: cases.Case) -> None:
        inputs = cases.make_inputs(case)
        masked = jit_mask_logits(*inputs, backend=self.backend)
        assert masked.dtype == jnp.float32
        np.testing.assert_array_equal(masked, reference.mask_logits(*inputs))


class TestXla(TokenMaskSuite):
    backend = "xla"


class TestTritonInterpreted(TokenMaskSuite):
    backend = "triton-interpret"


@pytest.mark.gpu
class TestXlaOnGpu(OnGpu, TokenMaskSuite):
    backend = "xla"


@pytest.mark.gpu
class TestTritonOnGpu(OnGpu, TokenMaskSuite):
    backend = "triton"

    def test_a_large_batch(self) -> None:
        inputs = cases.make_inputs(BENCHMARK)
        masked = jit_mask_logits(*inputs, backend="triton")
        np.testing.assert_array_equal(masked, jit_mask_logits(*inputs))


def test_wrong_outputs_are_told_apart() -> None:
    inputs = cases.make_inputs(cases.CASES[0])
    expected = reference.mask_logits(*inputs)
    for mistake, wrong in mistakes(inputs).items():
        with pytest.raises(AssertionError):
            np.testing.assert_array_equal(wrong, expected)
            pytest.fail(f"{mistake}: accepted")


def test_the_reference_by_hand() -> None:
    logits = np.arange(70, dtype=np.float32)[None].repeat(2, axis=0)
    masks = np.array([[0, 0, 0], [1 << 31, 1 << 0, 1 << 5]], np.uint32)
    masked = reference.mask_logits(logits, masks, np.array([1, -1], np.int32))
    assert np.flatnonzero(masked[0] > -np.inf).tolist() == [31, 32, 69]
    assert masked[0, [31, 32, 69]].tolist() == [31, 32, 69]
    np.testing.assert_array_equal(masked[1], logits[1])


@pytest.mark.parametrize("donate", [True, False])
def test_triton_masks_donated_logits_in_place(donate: bool) -> None:
    """Without donation nothing is aliased: what the test looks at does show the difference."""
    inputs = cases.make_inputs(cases.CASES[0])
    run = jax.jit(
        lambda *inputs: mask_logits(*inputs, backend="triton-interpret"),
        donate_argnums=0 if donate else (),
    )
    memory = run.lower(*map(jnp.asarray, inputs)).compile().memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == (inputs.logits.nbytes if donate else 0)


def test_bad_inputs_are_named() -> None:
    logits, masks, mask_row = map(jnp.asarray, cases.make_inputs(cases.CASES[0]))
    with pytest.raises(ValueError, match="logits must be float32"):
        mask_logits(logits.astype(jnp.bfloat16), masks, mask_row)
    with pytest.raises(ValueError, match="masks must be uint32"):
        mask_logits(logits, masks.astype(jnp.int32), mask_row)
    with pytest.raises(ValueError, match="at least one of each"):
        mask_logits(logits, masks[:0], mask_row)
    with pytest.raises(ValueError, match=r"mask_row must be int32 \[9\]"):
        mask_logits(logits, masks, mask_row[1:])
    with pytest.raises(ValueError, match=r"present: .*triton, triton-interpret.*xla"):
        mask_logits(logits, masks, mask_row, backend="abacus")
