import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgl.models.model_config import RopeScaling
from jaxsgl.models.rope import rope_frequencies, rope_tables, rotate
from tests.models.test_sharding import LLAMA_8B

LLAMA31 = dataclasses.replace(LLAMA_8B, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))


def test_pairs_turn_as_complex_numbers_do():
    """(a + ib) * exp(i * angle), with a in the first half of the head and b in the second."""
    frequencies = rope_frequencies(LLAMA_8B)
    positions = np.array([0, 1, 77, 4095])
    x = np.random.default_rng(0).standard_normal((4, 3, 128)).astype(np.float32)
    turned = np.asarray(rotate(jnp.asarray(x), *rope_tables(frequencies, jnp.asarray(positions))))

    angles = positions.astype(np.float32)[:, None, None] * frequencies
    expected = (x[..., :64] + 1j * x[..., 64:]) * np.exp(1j * angles.astype(np.float64))
    np.testing.assert_allclose(turned[..., :64], expected.real, atol=1e-5)
    np.testing.assert_allclose(turned[..., 64:], expected.imag, atol=1e-5)
    np.testing.assert_array_equal(turned[0], x[0])


def test_llama3_keeps_fast_waves_and_stretches_slow_ones():
    plain, scaled = rope_frequencies(LLAMA_8B), rope_frequencies(LLAMA31)
    wave_len = 2 * np.pi / plain
    fast, slow = wave_len < 8192 / 4, wave_len > 8192 / 1
    between = ~fast & ~slow
    assert fast.any() and slow.any() and between.any()
    np.testing.assert_allclose(scaled[fast], plain[fast], rtol=1e-6)
    np.testing.assert_allclose(scaled[slow], plain[slow] / 8.0, rtol=1e-6)
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / 8.0).all()


def test_linear_scaling_divides_every_frequency():
    scaled = dataclasses.replace(LLAMA_8B, rope_scaling=RopeScaling("linear", 4.0))
    np.testing.assert_allclose(
        rope_frequencies(scaled) * 4.0, rope_frequencies(LLAMA_8B), rtol=1e-6
    )


def test_an_unknown_scaling_is_refused():
    unknown = dataclasses.replace(LLAMA_8B, rope_scaling=RopeScaling("ntk", 2.0))
    with pytest.raises(ValueError, match="known: linear, dynamic, llama3, yarn, longrope"):
        rope_frequencies(unknown)
