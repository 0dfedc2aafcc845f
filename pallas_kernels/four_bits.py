"""Values of 4 bits, two in a byte, widened in the registers of a Pallas-Triton kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt
from jax.typing import DTypeLike

MIDDLE = 8
"""The zero of values that come without zeros."""


def both_halves(
    packed: jax.Array, zero: jax.Array | None, dtype: DTypeLike, *, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """The low and the high half of each byte, less their zero, in `dtype`. `zero` is of uint8 and
    of a shape that fits `packed`; None is MIDDLE everywhere."""
    if zero is None and dtype == jnp.bfloat16 and not interpret:
        return _in_pairs(_LOW_PAIRS, packed), _in_pairs(_HIGH_PAIRS, packed)
    offset = (jnp.uint8(MIDDLE) if zero is None else zero).astype(dtype)
    # Differences of small integers: exact in any dtype.
    return (packed & 15).astype(dtype) - offset, (packed >> 4).astype(dtype) - offset


RAISED_BY = 128.0


def raised_halves(packed: jax.Array, *, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """The low and the high half of each byte, both raised by RAISED_BY, in float32: one instruction
    each for a GPU, where to lower them again takes another. Whoever sums products with them lowers
    the sum."""
    if interpret:
        low, high = (half.astype(jnp.float32) + RAISED_BY for half in (packed & 15, packed >> 4))
        return low, high
    like = jax.ShapeDtypeStruct(packed.shape, jnp.float32)
    low, high = (
        plt.elementwise_inline_asm(
            assembly,
            args=[packed],
            constraints="=r,=r,=r,=r,r",
            pack=4,
            result_shape_dtypes=[like],
        )[0]
        for assembly in (_LOW_RAISED, _HIGH_RAISED)
    )
    return low, high


def _in_pairs(assembly: str, packed: jax.Array) -> jax.Array:
    """One half of each byte less 8 in bfloat16, four bytes at a time: converted one by one, they
    take more instructions than a GPU has time for while it reads them."""
    like = jax.ShapeDtypeStruct(packed.shape, jnp.bfloat16)
    [out] = plt.elementwise_inline_asm(
        assembly, args=[packed], constraints="=r,=r,r", pack=4, result_shape_dtypes=[like]
    )
    return out


# 0x4300 is 128 in bfloat16, and its lowest bits count ones: a half behind the byte 0x43 is 128 more
# than itself, of which 136 (0x4308) are taken off.
_PAIRS = """
prmt.b32 $0, half, 0x43434343, 0x4140;
prmt.b32 $1, half, 0x43434343, 0x4342;
mov.b32 offset, 0x43084308;
sub.rn.bf16x2 $0, $0, offset;
sub.rn.bf16x2 $1, $1, offset;
}"""
_LOW_PAIRS = "{.reg .b32 half, offset;\nand.b32 half, $2, 0x0f0f0f0f;" + _PAIRS
_HIGH_PAIRS = (
    "{.reg .b32 half, offset;\nshr.u32 half, $2, 4;\nand.b32 half, half, 0x0f0f0f0f;" + _PAIRS
)
# 0x43000000 is 128 in float32, and its third byte counts ones.
_RAISED = """
prmt.b32 $0, half, 0x43000000, 0x7044;
prmt.b32 $1, half, 0x43000000, 0x7144;
prmt.b32 $2, half, 0x43000000, 0x7244;
prmt.b32 $3, half, 0x43000000, 0x7344;
}"""
_LOW_RAISED = "{.reg .b32 half;\nand.b32 half, $4, 0x0f0f0f0f;" + _RAISED
_HIGH_RAISED = "{.reg .b32 half;\nshr.u32 half, $4, 4;\nand.b32 half, half, 0x0f0f0f0f;" + _RAISED
