"""Instructions of an NVIDIA GPU that Pallas-Triton does not choose by itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt


def multiply_add(a: jax.Array, b: jax.Array, c: jax.Array, *, interpret: bool) -> jax.Array:
    """a * b + c of float32 in one instruction, rounded once; Triton makes two of it. They are
    broadcast."""
    if interpret:
        return a * b + c
    arrays = jnp.broadcast_arrays(a, b, c)
    like = jax.ShapeDtypeStruct(arrays[0].shape, jnp.float32)
    [out] = plt.elementwise_inline_asm(
        "fma.rn.f32 $0, $1, $2, $3;",
        args=list(arrays),
        constraints="=f,f,f,f",
        pack=1,
        result_shape_dtypes=[like],
    )
    return out


def widened_float8(values: jax.Array, *, interpret: bool) -> jax.Array:
    """float8_e4m3fn as float32. Every four come from one register by way of float16, which has all
    their values."""
    if interpret:
        return values.astype(jnp.float32)
    like = jax.ShapeDtypeStruct(values.shape, jnp.float32)
    [out] = plt.elementwise_inline_asm(
        _WIDEN_FLOAT8,
        args=[values],
        constraints="=f,=f,=f,=f,r",
        pack=4,
        result_shape_dtypes=[like],
    )
    return out


_WIDEN_FLOAT8 = """{.reg .b16 first, second, a, b, c, d;
.reg .b32 ab, cd;
mov.b32 {first, second}, $4;
cvt.rn.f16x2.e4m3x2 ab, first;
cvt.rn.f16x2.e4m3x2 cd, second;
mov.b32 {a, b}, ab;
mov.b32 {c, d}, cd;
cvt.f32.f16 $0, a;
cvt.f32.f16 $1, b;
cvt.f32.f16 $2, c;
cvt.f32.f16 $3, d;
}"""
