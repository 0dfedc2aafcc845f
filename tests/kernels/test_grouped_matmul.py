"""Products of rows with the matrices of their groups against a reference in float64."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from numpy.typing import NDArray

from pallas_kernels.grouped_matmul import cases, reference
from pallas_kernels.grouped_matmul.api import grouped_matmul
from pallas_kernels.grouped_matmul.triton import tile_map
from tests.kernels.op_suite import OnGpu, ids
from tests.kernels.test_paged_lowering import H100


def assert_product(out: Any, inputs: cases.Inputs, expected: NDArray[np.float64]) -> None:
    """Within the rounding of float32 sums, 8 units in the last place of the sum of magnitudes, and
    then of the result's dtype."""
    x, matrices, sizes, scales, zeros = inputs
    assert out.dtype == x.dtype and out.shape == expected.shape
    stored = np.abs(reference.widened(matrices, scales, zeros))
    magnitude = reference.grouped_matmul(np.abs(np.nan_to_num(x)), stored, sizes)
    allowed = 8 * np.finfo(np.float32).eps * magnitude
    if x.dtype != np.float32:
        allowed += jnp.finfo(x.dtype).eps / 2 * np.abs(expected)
    error = np.abs(np.asarray(out, np.float64) - expected)
    # Written so that NaN fails.
    assert np.all(error <= allowed), "off by more than what may be"


def mistakes(inputs: cases.Inputs) -> dict[str, NDArray[np.float64]]:
    """What an implementation with one mistake would return."""
    x, matrices, sizes, scales, zeros = inputs
    right = reference.grouped_matmul(*inputs)
    stored = reference.widened(matrices, scales, zeros)
    wrong = {
        "zeros": np.zeros_like(right),
        "matrices of the neighbours": reference.grouped_matmul(x, np.roll(stored, 1, 0), sizes),
        "groups one row later": reference.grouped_matmul(np.roll(x, 1, 0), stored, sizes),
        "the last inputs left out": reference.grouped_matmul(x[:, :-8], stored[:, :-8], sizes),
        "a hundredth too large": right * 1.01,
    }
    if scales is None:
        return wrong

    def with_scales(scales: NDArray[Any]) -> NDArray[np.float64]:
        return reference.grouped_matmul(x, matrices, sizes, scales, zeros)

    wrong |= {
        "values as they are": with_scales(np.ones_like(scales)),
        "scales of the neighbours": with_scales(np.roll(scales, 1, 0)),
        "scales of other outputs": with_scales(np.roll(scales, 1, -1)),
    }
    if scales.ndim == 3:
        halves = (matrices << 4) | (matrices >> 4)
        wrong |= {
            "halves exchanged": reference.grouped_matmul(x, halves, sizes, scales, zeros),
            "another zero": reference.grouped_matmul(
                x, matrices, sizes, scales, np.full(scales.shape, 7, np.uint8)
            ),
        }
    return wrong


class GroupedMatmulSuite:
    backend: ClassVar[str]

    @ids(cases.CASES)
    def test_equals_the_reference(self, case: cases.Case) -> None:
        inputs = cases.make_inputs(case)
        out = grouped_matmul(*arrays(inputs), backend=self.backend)
        if case.kind == "int4" and case.dtype == "bfloat16" and self.backend == "xla":
            inputs = rounded(inputs)
        assert_product(out, inputs, reference.grouped_matmul(*inputs))


def arrays(inputs: cases.Inputs) -> list[Any]:
    return [None if each is None else jnp.asarray(each) for each in inputs]


def rounded(inputs: cases.Inputs) -> cases.Inputs:
    """With the matrices in x's dtype: XLA's backend writes those of 4 bits out."""
    x, matrices, sizes, scales, zeros = inputs
    stored = reference.widened(matrices, scales, zeros).astype(np.float32)
    return cases.Inputs(x, stored.astype(x.dtype), sizes)


class TestXla(GroupedMatmulSuite):
    backend = "xla"


class TestTritonInterpreted(GroupedMatmulSuite):
    backend = "triton-interpret"


@pytest.mark.gpu
class TestXlaOnGpu(OnGpu, GroupedMatmulSuite):
    backend = "xla"


@pytest.mark.gpu
class TestTritonOnGpu(OnGpu, GroupedMatmulSuite):
    backend = "triton"

    @ids(cases.CASES + cases.LARGE_CASES)
    def test_equals_the_reference(self, case: cases.Case) -> None:
        super().test_equals_the_reference(case)


@ids(tuple(case for case in cases.CASES if sum(map(bool, case.sizes)) > 1))
def test_wrong_outputs_are_told_apart(case: cases.Case) -> None:
    inputs = cases.make_inputs(case)
    expected = reference.grouped_matmul(*inputs)
    for mistake, wrong in mistakes(inputs).items():
        with pytest.raises(AssertionError, match="off by more"):
            assert_product(wrong.astype(inputs.x.dtype), inputs, expected)
            pytest.fail(f"{mistake}: accepted")


jitted_tile_map = jax.jit(tile_map, static_argnums=(1, 2))


def test_tiles_by_hand() -> None:
    """Tiles of four rows: groups of 5, 0 and 4 rows, two rows of no group, and a tile left over."""
    tiles = np.asarray(jitted_tile_map(jnp.array([5, 0, 4]), 11, 4))
    assert tiles[:4].tolist() == [[0, 0, 4], [0, 4, 1], [2, 5, 4], [3, 9, 2]]
    assert len(tiles) == 6 and not tiles[4:, 2].any()


def test_there_are_tiles_for_any_sizes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        groups, tile_rows = int(rng.integers(1, 9)), int(rng.choice([4, 16]))
        sizes = rng.multinomial(rng.integers(0, 60), np.ones(groups) / groups)
        rows = int(sizes.sum() + rng.integers(0, 9))
        if not rows:
            continue
        tiles = np.asarray(jitted_tile_map(jnp.array(sizes), rows, tile_rows))
        covered = [row for _, first, count in tiles for row in range(first, first + count)]
        assert covered == list(range(rows))
        for group, first, count in tiles[tiles[:, 2] > 0]:
            begin = sizes[:group].sum()
            assert begin <= first and count <= tile_rows
            assert group == groups or first + count <= begin + sizes[group]


@pytest.mark.parametrize("kind", ["plain", "int8", "float8", "int4"])
def test_lowers_for_an_h100(kind: str) -> None:
    """At the shapes of Qwen3 30B, without a GPU."""

    def shaped(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    per_output = [shaped(jnp.float32, 128, 1536)]
    matrices, scales = {
        "plain": (shaped(jnp.bfloat16, 128, 2048, 1536), []),
        "int8": (shaped(jnp.int8, 128, 2048, 1536), per_output),
        "float8": (shaped(jnp.float8_e4m3fn, 128, 2048, 1536), per_output),
        "int4": (shaped(jnp.uint8, 128, 1024, 1536), [shaped(jnp.float16, 128, 16, 1536)]),
    }[kind]
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=H100)):
        for rows in (16, 2048):
            arguments = (
                shaped(jnp.bfloat16, rows, 2048),
                matrices,
                shaped(jnp.int32, 128),
                *scales,
            )
            for backend, num_kernels in (("triton", 1), ("xla", 0)):
                run = jax.jit(
                    lambda *arrays, backend=backend: grouped_matmul(*arrays, backend=backend)
                )
                lowered = run.trace(*arguments).lower(lowering_platforms=("cuda",))
                assert lowered.as_text().count("@__gpu$xla.gpu.triton(") == num_kernels


def test_bad_inputs_are_named() -> None:
    x, matrices, sizes, *_ = arrays(cases.make_inputs(cases.CASES[0]))
    of_kind = {case.kind: case for case in cases.CASES}
    four, eight = (arrays(cases.make_inputs(of_kind[kind])) for kind in ("int4", "int8"))
    for arguments, problem in (
        ((x[:, 1:], matrices, sizes), "does not fit matrices"),
        ((x.astype(jnp.bfloat16), matrices, sizes), "does not fit matrices"),
        ((x, matrices, sizes[:0]), "group_sizes must be int32"),
        (eight[:3], "does not fit matrices"),
        ((*eight[:3], eight[3][:, 1:]), "scales must be float32"),
        ((*eight[:3], four[3]), "scales must be float32"),
        ((*four[:3], four[3][:, :, 1:]), "scales must be float16"),
        ((x, matrices, sizes, eight[3]), "values must be int8"),
    ):
        with pytest.raises(ValueError, match=problem):
            grouped_matmul(*arguments)
    with pytest.raises(ValueError, match="present: triton, triton-interpret, xla"):
        grouped_matmul(x, matrices, sizes, backend="abacus")
