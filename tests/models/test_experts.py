"""Routing and grouped products against their formulas, one token at a time."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgl.models import experts as module
from jaxsgl.models.experts import MixtureOfExperts, route
from jaxsgl.models.model_config import Experts
from jaxsgl.models.sharding import resolve_layout
from tests.models.tiny import one_device_mesh, tiny_config

EXPERTS = Experts(num_experts=6, num_chosen=2, mlp_size=8, normalised=True)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


@pytest.mark.parametrize(
    "experts",
    [
        EXPERTS,
        dataclasses.replace(EXPERTS, normalised=False, scale=2.5),
        dataclasses.replace(EXPERTS, normalised=False, num_groups=3, num_chosen_groups=1),
    ],
    ids=["normalised", "scaled", "groups"],
)
def test_tokens_choose_their_best_experts(experts: Experts) -> None:
    logits = random(20, 6)
    chosen, weights = (np.asarray(array) for array in route(jnp.array(logits), experts))
    for row in range(20):
        scores = softmax(logits[row])
        if experts.num_groups > 1:
            best = scores.reshape(3, 2).max(1).argmax()
            scores[np.arange(6) // 2 != best] = 0
        expected = np.argsort(-scores)[:2]
        share = scores[expected]
        if experts.normalised:
            share = share / share.sum()
        assert chosen[row].tolist() == expected.tolist()
        np.testing.assert_allclose(weights[row], share * experts.scale, rtol=1e-5)


def test_many_tokens_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each gets what it would get alone."""
    config = tiny_config(hidden_size=4, experts=EXPERTS, architecture="qwen3_moe")
    block = MixtureOfExperts(config, resolve_layout(config, one_device_mesh()), jnp.float32)
    for seed, weight in enumerate((block.router, block.gate_up, block.down)):
        weight.set_value(jnp.array(random(*weight.shape, seed=seed)))
    x = random(11, 4, seed=5)
    whole = np.asarray(block(jnp.array(x)))
    monkeypatch.setattr(module, "BLOCK_TOKENS", 4)
    np.testing.assert_allclose(block(jnp.array(x)), whole, atol=1e-5)
    gate_up, down = np.asarray(block.gate_up[...]), np.asarray(block.down[...])
    for row in range(11):
        chosen, share = route(jnp.array(x[row : row + 1] @ random(6, 4).T), EXPERTS)
        expected = np.zeros(4)
        for expert, weight in zip(np.asarray(chosen)[0], np.asarray(share)[0], strict=True):
            gate, up = (x[row] @ gate_up[expert]).reshape(-1, 2).T
            expected += weight * ((gate / (1 + np.exp(-gate)) * up) @ down[expert])
        np.testing.assert_allclose(whole[row], expected, atol=1e-4)
