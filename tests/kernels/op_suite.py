"""The one suite that every implementation of a kernel is put through.

A backend's test module subclasses the classes here and names itself. Every comparison with a
reference comes with controls: outputs known to be wrong, which the same assertion must reject.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from pallas_kernels.kv_write import cases as kv_write_cases
from pallas_kernels.kv_write import reference as kv_write_reference
from pallas_kernels.kv_write.api import kv_write
from pallas_kernels.paged_cases import DTYPES, PagedCache
from pallas_kernels.paged_decode import cases as decode_cases
from pallas_kernels.paged_decode import reference as decode_reference
from pallas_kernels.paged_decode.api import paged_decode
from pallas_kernels.paged_prefill import cases as prefill_cases
from pallas_kernels.paged_prefill import reference as prefill_reference
from pallas_kernels.paged_prefill.api import paged_prefill

Floats = NDArray[np.floating]
Inputs = decode_cases.Inputs | prefill_cases.Inputs
Case = decode_cases.Case | prefill_cases.Case


def assert_attention(
    out: Any,
    expected: Floats,
    cache: PagedCache,
    dtype: str,
    mean_magnitude: Floats | None = None,
) -> None:
    """Every element within the rounding of float32 attention, plus that of the output's dtype.

    An output is a mean of values, so its error is measured against the largest of them. Sums of n
    terms are off by about sqrt(n) halves of a unit in the last place: 32 units cover 4096 keys.
    The output is then rounded once, by at most half a unit of its dtype. So are the weights of the
    mean, where the mean of the values' magnitudes is given: each by at most half a unit.
    """
    assert out.dtype == DTYPES[dtype]
    assert out.shape == expected.shape
    largest = np.abs(without_nan(cache.v_pages).astype(np.float32)).max()
    half_unit = jnp.finfo(out.dtype).eps / 2
    allowed = 32 * np.finfo(np.float32).eps * largest
    allowed += half_unit * np.abs(expected)
    if mean_magnitude is not None:
        allowed += half_unit * mean_magnitude
    error = np.abs(np.asarray(out, np.float32) - expected)
    # Written so that NaN fails.
    assert np.all(error <= allowed), (
        f"off by up to {np.max(error / allowed):.3g} of what is allowed"
    )


def ids(cases: tuple[Any, ...]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name.replace(" ", "-"))


def named(cases: tuple[Any, ...], names: set[str]) -> Any:
    """Parametrizes a test with the cases of these names."""
    chosen = tuple(case for case in cases if case.name in names)
    assert {case.name for case in chosen} == names
    return ids(chosen)


def without_nan(pages: Floats) -> Floats:
    return np.nan_to_num(pages.astype(np.float32)).astype(pages.dtype)


def only_row(cache: PagedCache, row: int, case: Case) -> PagedCache:
    """The cache with NaN in every page that the row does not own."""
    pages = cache.page_table[row, : -(-case.kv_len[row] // case.page_size)]
    others = np.isin(np.arange(len(cache.k_pages)), pages, invert=True)
    k_pages, v_pages = cache.k_pages.copy(), cache.v_pages.copy()
    k_pages[others] = v_pages[others] = np.nan
    return cache._replace(k_pages=k_pages, v_pages=v_pages)


def wrong_outputs(inputs: Inputs, reference: Callable[..., Floats]) -> dict[str, Floats]:
    """What an implementation with one mistake would return."""
    cache = inputs.cache
    shuffled = cache._replace(
        k_pages=without_nan(np.roll(cache.k_pages, 1, axis=0)),
        v_pages=without_nan(np.roll(cache.v_pages, 1, axis=0)),
    )
    right = run_reference(inputs, reference)
    return {
        "zeros": np.zeros_like(right),
        "values taken from keys": run_reference(
            inputs._replace(cache=cache._replace(v_pages=cache.k_pages)), reference
        ),
        "pages in another order": run_reference(inputs._replace(cache=shuffled), reference),
        "heads in another order": np.roll(right, 1, axis=1),
        "a sixty-fourth too large": (right * (1 + 2.0**-6)).astype(np.float32),
    }


def mean_magnitude(inputs: Inputs, reference: Callable[..., Floats]) -> Floats:
    """The reference's output if all values were positive."""
    cache = inputs.cache
    magnitudes = np.abs(cache.v_pages.astype(np.float32)).astype(cache.v_pages.dtype)
    return run_reference(inputs._replace(cache=cache._replace(v_pages=magnitudes)), reference)


def run_reference(inputs: Inputs, reference: Callable[..., Floats]) -> Floats:
    first, cache, *rest = inputs[:-1]
    return reference(first, *cache, *rest, **inputs.options)


def run_kernel(inputs: Inputs, op: Callable[..., jax.Array], backend: str) -> NDArray[Any]:
    first, cache, *rest = inputs[:-1]
    call = compiled_kernel(op, backend, tuple(inputs.options.items()))
    return np.asarray(call(first, *cache, *rest))


@functools.cache
def compiled_kernel(op: Callable[..., jax.Array], backend: str, options: tuple[Any, ...]) -> Any:
    return jax.jit(functools.partial(op, backend=backend, **dict(options)))


class OnGpu:
    """Mixed into a suite that must not pass on anything else."""

    backend: ClassVar[str]

    @pytest.fixture(autouse=True)
    def gpu(self) -> Iterator[None]:
        assert jax.default_backend() == "gpu"
        # As for models in float32: else XLA rounds what it multiplies to 10 bits (TF32).
        with jax.default_matmul_precision("highest" if self.backend == "xla" else None):
            yield


class Interpreted:
    """Mixed into a suite of kernels that Triton's interpreter runs once or twice each: to optimise
    such programs takes longer than it saves."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def unoptimised(cls) -> Iterator[None]:
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


class PagedDecodeSuite:
    backend: ClassVar[str]
    rounds_weights: ClassVar[bool] = False
    """To the queries' dtype."""

    def run(self, inputs: decode_cases.Inputs) -> NDArray[Any]:
        return run_kernel(inputs, paged_decode, self.backend)

    @ids(decode_cases.CASES)
    def test_equals_the_reference(self, case: decode_cases.Case) -> None:
        inputs = decode_cases.make_inputs(case)
        self.check(self.run(inputs), inputs, case)

    def check(self, out: Any, inputs: decode_cases.Inputs, case: decode_cases.Case) -> None:
        reference = decode_reference.paged_decode
        expected = run_reference(inputs, reference)
        magnitude = mean_magnitude(inputs, reference) if self.rounds_weights else None
        assert_attention(out, expected, inputs.cache, case.dtype, magnitude)

    def test_rows_do_not_see_each_other(self) -> None:
        """Bits stay the same when all other rows' queries and pages become NaN."""
        case = decode_cases.Case("", (90, 20, 300, 0, 64, 5, 130, 33, 71))
        inputs = decode_cases.make_inputs(case)
        together = self.run(inputs)
        for row in (0, 2, 5):
            q = np.full_like(inputs.q, np.nan)
            q[row] = inputs.q[row]
            alone = self.run(inputs._replace(q=q, cache=only_row(inputs.cache, row, case)))
            np.testing.assert_array_equal(alone[row], together[row])

    def test_pages_of_a_later_layer(self) -> None:
        case = decode_cases.Case("", (40, 0, 20))
        check_first_page(decode_cases.make_inputs(case), paged_decode, self)

    def test_same_inputs_same_bits(self) -> None:
        inputs = decode_cases.make_inputs(decode_cases.Case("", (90, 20, 300, 0)))
        np.testing.assert_array_equal(self.run(inputs), self.run(inputs))


class PagedPrefillSuite:
    backend: ClassVar[str]
    rounds_weights: ClassVar[bool] = False
    """To the queries' dtype."""

    def run(self, inputs: prefill_cases.Inputs) -> NDArray[Any]:
        return run_kernel(inputs, paged_prefill, self.backend)

    @ids(prefill_cases.CASES)
    def test_equals_the_reference(self, case: prefill_cases.Case) -> None:
        inputs = prefill_cases.make_inputs(case)
        out = self.run(inputs)
        self.check(out, inputs, case)
        assert not np.any(out[inputs.q_start[-1] :])

    def check(self, out: Any, inputs: prefill_cases.Inputs, case: prefill_cases.Case) -> None:
        reference = prefill_reference.paged_prefill
        expected = run_reference(inputs, reference)
        magnitude = mean_magnitude(inputs, reference) if self.rounds_weights else None
        assert_attention(out, expected, inputs.cache, case.dtype, magnitude)

    def test_pages_of_a_later_layer(self) -> None:
        case = prefill_cases.Case("", (1, 9), (20, 12), padding=2)
        check_first_page(prefill_cases.make_inputs(case), paged_prefill, self)

    def test_a_row_without_a_place_for_padding(self) -> None:
        """A bucket filled to its last token, in more than one tile."""
        case = prefill_cases.Case("", (1, 65, 62), (9, 70, 62))
        inputs = prefill_cases.make_inputs(case)
        self.check(self.run(inputs), inputs, case)

    def test_rows_do_not_see_each_other(self) -> None:
        """Bits stay the same when all other rows' queries and pages become NaN."""
        case = prefill_cases.Case("", (1, 20, 70), (50, 20, 99), padding=37)
        inputs = prefill_cases.make_inputs(case)
        together = self.run(inputs)
        for row in range(3):
            mine = slice(inputs.q_start[row], inputs.q_start[row + 1])
            q = np.full_like(inputs.q, np.nan)
            q[mine] = inputs.q[mine]
            alone = self.run(inputs._replace(q=q, cache=only_row(inputs.cache, row, case)))
            np.testing.assert_array_equal(alone[mine], together[mine])


def check_first_page(inputs: Any, op: Callable[..., jax.Array], suite: Any) -> None:
    """The same outputs, bit by bit, from pages that lie behind those of another layer."""
    q, cache, *rest = inputs[:-1]
    others = np.full_like(cache.k_pages, np.nan)
    k_pages, v_pages = (np.concatenate([others, pages]) for pages in cache[:2])
    run = functools.partial(op, q, k_pages, v_pages, cache.page_table, *rest, **inputs.options)
    first_page = jnp.int32(len(others))
    out = np.asarray(run(first_page=first_page, backend=suite.backend))
    np.testing.assert_array_equal(out, suite.run(inputs))
    # The control: of the other layer's there are only NaN.
    assert np.isnan(np.asarray(run(backend=suite.backend))).any()


class KvWriteSuite:
    backend: ClassVar[str]

    @ids(kv_write_cases.CASES)
    def test_equals_the_reference(self, case: kv_write_cases.Case) -> None:
        inputs = kv_write_cases.make_inputs(case)
        expected = kv_write_reference.kv_write(*inputs)
        written = kv_write(*map(jnp.asarray, inputs), backend=self.backend)
        for out, pages in zip(written, expected, strict=True):
            assert out.dtype == pages.dtype
            np.testing.assert_array_equal(np.asarray(out), pages)

    def test_donated_pages_are_written_in_place(self) -> None:
        alias_bytes, copies = cache_traffic(self.backend, donate=True)
        assert alias_bytes == 2 * CACHE_BYTES
        assert copies == []

    def test_pages_not_donated_are_copied(self) -> None:
        """The control: what the test above looks at does show a copy."""
        alias_bytes, copies = cache_traffic(self.backend, donate=False)
        assert alias_bytes == 0
        assert len(copies) == 2


CACHE_SHAPE = (1024, 16, 3, 64)
CACHE_BYTES = int(np.prod(CACHE_SHAPE)) * 4


def cache_traffic(backend: str, donate: bool) -> tuple[int, list[str]]:
    """Of a compiled step that writes to a cache and attends over it: bytes of arguments that come
    back as results, and copies as large as the cache."""

    @functools.partial(jax.jit, donate_argnums=(0, 1) if donate else ())
    def step(
        k_pages: jax.Array, v_pages: jax.Array, new: jax.Array, place: jax.Array, table: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        k_pages, v_pages = kv_write(k_pages, v_pages, new, new, place, place, backend=backend)
        attended = paged_decode(new, k_pages, v_pages, table, place, scale=1.0)
        return k_pages, v_pages, attended

    pages = jax.ShapeDtypeStruct(CACHE_SHAPE, jnp.float32)
    new = jax.ShapeDtypeStruct((16, *CACHE_SHAPE[2:]), jnp.float32)
    place = jax.ShapeDtypeStruct((16,), jnp.int32)
    table = jax.ShapeDtypeStruct((16, 64), jnp.int32)
    compiled = step.lower(pages, pages, new, place, table).compile()
    program, memory = compiled.as_text(), compiled.memory_analysis()
    assert program is not None
    assert memory is not None
    results = [line.partition(" = ")[2] for line in program.splitlines()]
    copies = [text for text in results if " copy(" in text and num_bytes(text) >= CACHE_BYTES]
    return memory.alias_size_in_bytes, copies


def num_bytes(instruction: str) -> int:
    """Of an HLO instruction's float32 result, which starts as in `f32[16,3,64]{2,1,0} copy(`."""
    dimensions = instruction.partition("[")[2].partition("]")[0]
    return 4 * int(np.prod([int(size) for size in dimensions.split(",") if size]))
