"""What a start does to the places of arrays in a device's memory, on a model of its allocator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import jax.numpy as jnp
import pytest
from flax import nnx

from jaxsgl.models.llama import Llama
from jaxsgl.models.quantization.family import named_weights, quantized_family
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.weights import load_order, loading_bytes, num_bytes, weight_bytes
from jaxsgl.runner.memory import GIB, HOLES_SHARE, MemoryPlan
from tests.models.tiny import one_device_mesh, tiny_config
from tests.runner.best_fit import BestFit, Piece

CONFIG = tiny_config(
    vocab_size=128256,
    hidden_size=4096,
    num_layers=32,
    num_q_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_size=14336,
    tie_embeddings=False,
)
"""Llama 3.1 8B."""
LAYOUT = resolve_layout(CONFIG, one_device_mesh())
PLAIN = Llama(CONFIG, LAYOUT, jnp.bfloat16)
FLOAT8 = quantized_family(Llama, "fp8", "fp8")(CONFIG, LAYOUT, jnp.bfloat16)
PARTS = {"qkv": (4, 1, 1), "gate_up": (1, 1)}
"""Of merged weights, the tensors' shares."""


def in_load_order(model: nnx.Module) -> list[tuple[str, nnx.Param]]:
    return sorted(named_weights(model), key=lambda each: load_order(each[1]))


def in_layer_order(model: nnx.Module) -> list[tuple[str, nnx.Param]]:
    """The head last."""
    return sorted(named_weights(model), key=lambda each: (each[0] == "head", each[0]))


def load(device: BestFit, weights: Iterable[tuple[str, nnx.Param]]) -> list[Piece]:
    """Each tensor comes in float32, several are merged into another array of float32; that is cast,
    and the cast array brought into another order, while it is there."""
    placed: list[Piece] = []
    for name, weight in weights:
        num_values = math.prod(weight.shape)
        shares = PARTS.get(name.rpartition(".")[2], (1,))
        sizes = [4 * num_values * share // sum(shares) for share in shares]
        values = [device.take(size) for size in sizes]
        if len(values) > 1:
            merged = device.take(4 * num_values)
            for part in values:
                device.give(part)
            values = [merged]
        cast = device.take(weight_bytes(weight))
        placed.append(device.take(weight_bytes(weight)))
        for temporary in (*values, cast):
            device.give(temporary)
    return placed


def planned(model: Llama, limit: int) -> MemoryPlan:
    plan = MemoryPlan(
        limit=limit,
        in_use=0,
        weights=num_bytes(model),
        slots=GIB // 16,
        loading=loading_bytes(model, LAYOUT),
        steps=GIB // 2,
        page=2**21,
        num_pages=0,
    )
    return dataclasses.replace(plan, num_pages=plan.free // plan.page)


def pages_of(plan: MemoryPlan, device: BestFit) -> list[Piece]:
    """Keys and values, or neither."""
    keys = device.take(plan.kv // 2)
    try:
        return [keys, device.take(plan.kv // 2)]
    except MemoryError:
        device.give(keys)
        raise


CASES = pytest.mark.parametrize(("model", "limit_gib"), [(PLAIN, 35.63), (FLOAT8, 71.3)])


@CASES
def test_pages_are_where_they_were_held_and_a_step_has_room(model: Llama, limit_gib: float) -> None:
    plan = planned(model, int(limit_gib * GIB))
    device = BestFit(plan.limit)
    room, held = device.take(plan.steps), pages_of(plan, device)
    load(device, in_load_order(model))
    for pages in held:
        device.give(pages)
    starts = [pages.start for pages in held]
    assert [pages.start for pages in pages_of(plan, device)] == starts
    device.take(plan.slots)
    device.give(room)
    device.take(plan.steps)


@CASES
def test_weights_in_the_order_of_layers_leave_no_such_piece(model: Llama, limit_gib: float) -> None:
    """The control: the same memory is free, in pieces."""
    plan = planned(model, int(limit_gib * GIB))
    device = BestFit(plan.limit)
    device.take(plan.steps)
    load(device, in_layer_order(model))
    assert sum(piece.size for piece in device.free) > plan.kv
    with pytest.raises(MemoryError):
        pages_of(plan, device)


def test_what_is_lost_between_weights_is_within_the_share_for_it() -> None:
    limit = 71 * GIB

    def lost(weights: Iterable[tuple[str, nnx.Param]]) -> float:
        device = BestFit(limit)
        load(device, weights)
        largest = max(piece.size for piece in device.free)
        return (limit - num_bytes(PLAIN) - largest) / GIB

    assert lost(in_load_order(PLAIN)) < 1 < HOLES_SHARE * 71
    assert 4.5 < lost(in_layer_order(PLAIN)) < 5


@CASES
def test_weights_that_were_replaced_come_back_behind_the_pages(
    model: Llama, limit_gib: float
) -> None:
    plan = planned(model, int(limit_gib * GIB))
    device = BestFit(plan.limit)
    pages, old = pages_of(plan, device), load(device, in_load_order(model))
    for piece in pages:
        device.give(piece)
    new = load(device, in_load_order(model))
    for piece in old:
        device.give(piece)
    with pytest.raises(MemoryError):
        pages_of(plan, device)
    for piece in new:
        device.give(piece)
    assert device.free == [Piece(0, plan.limit)]
    pages_of(plan, device)
    load(device, in_load_order(model))
    device.take(plan.slots)
    device.take(plan.steps)
