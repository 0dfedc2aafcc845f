"""Products with quantised matrices against a reference written from the formats."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from numpy.typing import NDArray

from pallas_kernels.four_bits import RAISED_BY
from pallas_kernels.quant_matmul import cases, reference
from pallas_kernels.quant_matmul.api import quant_matmul
from tests.kernels.op_suite import OnGpu, ids, named
from tests.kernels.test_paged_lowering import H100


def assert_product(out: Any, inputs: cases.Inputs, expected: NDArray[np.float64]) -> None:
    """Within the rounding of float32 sums: sums of n terms are off by about sqrt(n) halves of a
    unit in the last place of the sum of their magnitudes; 8 units cover 640 terms. Values of four
    bits may be raised while they are summed: that adds terms whose rounding errors are as likely up
    as down."""
    x, values, scales, zeros = inputs
    wide = np.abs(x.astype(np.float64))
    magnitude = wide @ np.abs(reference.matrix(values, scales, zeros)).T
    if values.dtype == np.uint8:
        raised = (RAISED_BY + 15) * np.abs(scales.astype(np.float64))
        each = np.repeat(raised, x.shape[1] // scales.shape[1], axis=1)
        magnitude = np.maximum(magnitude, np.sqrt(wide**2 @ (each**2).T))
    error = np.abs(np.asarray(out, np.float64) - expected)
    allowed = 8 * np.finfo(np.float32).eps * magnitude
    # Written so that NaN fails.
    assert np.all(error <= allowed), f"off by up to {np.max(error / allowed):.3g} of what may be"


def mistakes(inputs: cases.Inputs) -> dict[str, NDArray[np.float64]]:
    """What an implementation with one mistake would return."""
    x, values, scales, zeros = inputs
    right = reference.quant_matmul(*inputs)
    wrong = {
        "zeros": np.zeros_like(right),
        "outputs in another order": np.roll(right, 1, axis=1),
        "scales of the neighbours": reference.quant_matmul(
            x, values, np.roll(scales, 1, axis=-1), zeros
        ),
        "a thousandth too large": right * 1.001,
    }
    if zeros is not None:
        halves = (values << 4) | (values >> 4)
        wrong |= {
            "halves exchanged": reference.quant_matmul(x, halves, scales, zeros),
            "zeros of the neighbours": reference.quant_matmul(
                x, values, scales, np.roll(zeros, 1, axis=-1)
            ),
            "zeros of another convention": reference.quant_matmul(x, values, scales, zeros + 1),
        }
    return wrong


class QuantMatmulSuite:
    backend: ClassVar[str]

    @ids(cases.CASES)
    def test_equals_the_reference(self, case: cases.Case) -> None:
        inputs = cases.make_inputs(case)
        out = quant_matmul(*map(_array, inputs), dtype=jnp.float32, backend=self.backend)
        assert out.dtype == jnp.float32 and out.shape == (case.tokens, case.outputs)
        assert_product(out, inputs, reference.quant_matmul(*inputs))

    @named(cases.CASES, {"int4, a batch", "int4, no zeros"})
    def test_bfloat16_is_rounded_once(self, case: cases.Case) -> None:
        inputs = cases.make_inputs(case)
        x = inputs.x.astype(jnp.bfloat16)
        inputs = inputs._replace(x=x)
        arrays = [_array(each) for each in inputs]
        wide = quant_matmul(*arrays, dtype=jnp.float32, backend=self.backend)
        narrow = quant_matmul(*arrays, dtype=jnp.bfloat16, backend=self.backend)
        if self.backend != "xla":  # which rounds the matrix, too
            assert_product(wide, inputs, reference.quant_matmul(*inputs))
        np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


def _array(values: NDArray[Any] | None) -> jax.Array | None:
    return None if values is None else jnp.asarray(values)


class TestXla(QuantMatmulSuite):
    backend = "xla"


class TestTritonInterpreted(QuantMatmulSuite):
    backend = "triton-interpret"


@pytest.mark.gpu
class TestXlaOnGpu(OnGpu, QuantMatmulSuite):
    backend = "xla"


@pytest.mark.gpu
class TestTritonOnGpu(OnGpu, QuantMatmulSuite):
    backend = "triton"


@ids(tuple({case.kind: case for case in cases.CASES if case.inputs > case.group}.values()))
def test_wrong_outputs_are_told_apart(case: cases.Case) -> None:
    inputs = cases.make_inputs(case)
    for mistake, wrong in mistakes(inputs).items():
        with pytest.raises(AssertionError):
            assert_product(wrong, inputs, reference.quant_matmul(*inputs))
            pytest.fail(f"{mistake}: accepted")


def test_the_reference_by_hand() -> None:
    values = np.zeros((1, 16), np.uint8)
    values[0, 3] = 0xA5  # input 3 is 5, input 19 is 10
    scales, zeros = np.array([[0.5]], np.float16), np.array([[7]], np.uint8)
    matrix = reference.matrix(values, scales, zeros)[0]
    assert (matrix[3], matrix[19], matrix[0]) == (-1.0, 1.5, -3.5)


@pytest.mark.parametrize("tokens", [1, 64])
@pytest.mark.parametrize("kind", ["int4", "int8", "float8"])
def test_lowers_for_an_h100(kind: str, tokens: int) -> None:
    """At the shapes of Llama 8B, without a GPU."""
    outputs, inputs = 6144, 4096

    def shaped(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    bfloat16, float8 = jnp.bfloat16, jnp.float8_e4m3fn
    arguments: dict[str, tuple[jax.ShapeDtypeStruct, ...]] = {
        "int4": (
            shaped(bfloat16, tokens, inputs),
            shaped(jnp.uint8, outputs, inputs // 2),
            shaped(jnp.float16, outputs, inputs // 128),
            shaped(jnp.uint8, outputs, inputs // 128),
        ),
        "int8": (
            shaped(bfloat16, tokens, inputs),
            shaped(jnp.int8, outputs, inputs),
            shaped(jnp.float32, outputs),
        ),
        "float8": (
            shaped(float8, tokens, inputs),
            shaped(float8, outputs, inputs),
            shaped(jnp.float32, outputs),
        ),
    }
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=H100)):
        for backend, num_kernels in (("triton", 1), ("xla", 0)):
            run = jax.jit(
                lambda *arrays, backend=backend: quant_matmul(
                    *arrays, dtype=bfloat16, backend=backend
                )
            )
            lowered = run.trace(*arguments[kind]).lower(lowering_platforms=("cuda",))
            assert lowered.as_text().count("@__gpu$xla.gpu.triton(") == num_kernels


def test_bad_inputs_are_named() -> None:
    of_kind = {case.kind: case for case in cases.CASES}
    four = [_array(each) for each in cases.make_inputs(cases.CASES[0])]
    eight = [_array(each) for each in cases.make_inputs(of_kind["int8"])]
    assert four[2] is not None and eight[1] is not None and eight[0] is not None
    for arguments, problem in (
        ([*eight[:3], four[3]], "only a matrix of 4 bits"),
        ([*four[:2], four[2][:, :3], four[3]], "zeros must be uint8"),
        ([eight[0][:, 1:], *eight[1:]], "values must be int8"),
        ([eight[0], eight[1].astype(jnp.int16), *eight[2:]], "not int16"),
        ([eight[0].astype(jnp.float8_e4m3fn), *eight[1:]], "x is float8_e4m3fn where"),
    ):
        with pytest.raises(ValueError, match=problem):
            quant_matmul(*arguments, dtype=jnp.float32)
    with pytest.raises(ValueError, match="present: triton, triton-interpret, xla"):
        quant_matmul(*eight, dtype=jnp.float32, backend="abacus")
