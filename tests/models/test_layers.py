"""The building blocks against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgl.models.layers import MAX_FEW_TOKENS, linear, rms_norm, silu


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize("tokens", [1, 2, 5, MAX_FEW_TOKENS, MAX_FEW_TOKENS + 1])
@pytest.mark.parametrize("weight_shape", [(7, 24), (3, 2, 5, 24), (6, 4, 3, 2)])
def test_linear(tokens, weight_shape):
    """Whichever way round a product is computed."""
    x, weight = random(tokens, 24), random(*weight_shape)
    out_shape = weight_shape[:-1] if weight_shape[-1] == 24 else weight_shape[:1]
    expected = (x.astype(np.float64) @ weight.reshape(-1, 24).T).reshape(tokens, *out_shape)
    for run in (linear, jax.jit(linear)):
        np.testing.assert_allclose(run(jnp.array(x), jnp.array(weight)), expected, atol=2e-5)
    other = linear(jnp.array(x)[::-1], jnp.array(weight))
    assert tokens == 1 or np.abs(other - expected).max() > 0.1


@pytest.mark.parametrize("tokens", [1, 4])
def test_linear_rounds_once(tokens):
    x, weight = jnp.array(random(tokens, 24), jnp.bfloat16), jnp.array(random(7, 24), jnp.bfloat16)
    expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    wide = linear(x, weight, jnp.float32)
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, expected, atol=2e-5)
    assert linear(x, weight).dtype == jnp.bfloat16


def test_rms_norm():
    x, scale = random(3, 8), random(8)
    expected = scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(rms_norm(jnp.array(x), jnp.array(scale), 1e-5), expected, atol=1e-5)


def test_silu():
    x = random(50)
    np.testing.assert_allclose(silu(jnp.array(x)), x / (1 + np.exp(-x)), atol=1e-6)
