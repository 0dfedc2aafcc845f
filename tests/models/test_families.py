"""Every family against logits that HuggingFace computed: prefill in chunks, then token by token,
through the programs that serve."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgl.models.attention import AttentionKind
from jaxsgl.models.model_config import KNOWN_ARCHITECTURES, ModelConfig
from jaxsgl.models.registry import MODEL_CLASSES, model_class
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.weights import TensorSource, load_weights
from jaxsgl.runner.batch import pack_forward
from jaxsgl.runner.buckets import Bucket
from jaxsgl.runner.kv_cache import kv_allocator
from jaxsgl.runner.programs import forward_program, split_model, split_weights
from jaxsgl.runner.slot_state import state_allocator
from jaxsgl.step import StepLimits, StepPlan
from tests.models.families import FAMILIES, family_model
from tests.models.tiny import one_device_mesh

MAX_ERROR = 2e-4
PAGE_SIZE = 5
CHUNKS = (23, 20, 5)
"""Prefill; the other tokens are decoded."""
PREFILL = Bucket("mixed", 24, 2, 12)
"""Of fewer logits than tokens, so that the last layer ends with the former alone."""
DECODE = Bucket("decode", 1, 1, 1)
LIMITS = StepLimits(
    num_pages=33,
    page_size=PAGE_SIZE,
    num_slots=2,
    max_rows=2,
    max_tokens=24,
    max_logits=12,
    max_pages_per_row=16,
    vocab_size=96,
)


class Sequence:
    """One sequence in slot 1, on shuffled pages that hold NaN before."""

    def __init__(self, config: ModelConfig, tensors: TensorSource) -> None:
        layout = resolve_layout(config, one_device_mesh())
        model = load_weights(model_class(config.architecture), config, tensors, layout, jnp.float32)
        join, _ = split_model(model, layout)
        self.weights = split_weights(model)
        self.programs = {
            bucket.mode: forward_program(
                join, layout, bucket, PAGE_SIZE, AttentionKind(bucket.mode, "xla"), {}
            )
            for bucket in (PREFILL, DECODE)
        }
        kv = kv_allocator(config, layout, LIMITS.num_pages, PAGE_SIZE, jnp.float32)()
        # What a page held before must not matter, but in the page of padding.
        self.kv = jax.tree.map(lambda pages: pages.at[1:].set(jnp.nan), kv)
        order = np.random.default_rng(0).permutation(np.arange(1, LIMITS.num_pages))
        table = np.zeros((LIMITS.num_slots + 1, LIMITS.max_pages_per_row), np.int32)
        table[1] = order[: LIMITS.max_pages_per_row]
        state = state_allocator(layout, LIMITS)()
        self.state = state._replace(page_table=jnp.asarray(table))
        self.len = 0
        self.hidden: list[np.ndarray] = []
        """Of what was prefilled."""

    def run(self, token_ids: np.ndarray) -> np.ndarray:
        """Logits after every second of the next tokens, the last among them."""
        num = len(token_ids)
        logit_idx = wanted(num)
        self.len += num
        plan = StepPlan(
            step_id=0,
            mode="decode" if num == 1 else "mixed",
            slot=np.array([1], np.int32),
            q_start=np.array([0, num], np.int32),
            token_ids=token_ids,
            kv_len=np.array([self.len], np.int32),
            write_from=np.zeros(1, np.int32),
            logit_idx=logit_idx,
            logit_start=np.array([0, len(logit_idx)], np.int32),
            logit_target=np.full(len(logit_idx), -1, np.int32),
            page_edits=np.zeros((0, 3), np.int32),
        )
        program = self.programs[plan.mode]
        vector = pack_forward(plan, program.fields, LIMITS.num_slots)
        logits, hidden, self.kv = program.run(
            self.weights, self.kv, self.state, jnp.asarray(vector)
        )
        if hidden is not None:
            self.hidden.append(np.asarray(hidden)[: len(logit_idx)])
        return np.asarray(logits)[: len(logit_idx)]

    def run_all(self, token_ids: np.ndarray) -> np.ndarray:
        return np.concatenate([self.run(chunk) for chunk in chunks(token_ids)])


def chunks(values: np.ndarray) -> list[np.ndarray]:
    """What belongs to the tokens of each step."""
    ends = np.cumsum(CHUNKS)
    decoded = np.arange(ends[-1] + 1, len(values))
    return np.split(values, [*ends, *decoded])


def wanted(num_tokens: int) -> np.ndarray:
    """Every second of a step's tokens, the last among them."""
    return np.arange((num_tokens - 1) % 2, num_tokens, 2, dtype=np.int32)


def wanted_of(steps: list[np.ndarray]) -> np.ndarray:
    """What belongs to the tokens of these steps whose logits are wanted."""
    return np.concatenate([values[wanted(len(values))] for values in steps])


def max_error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(logits - expected).max())


VARIANTS = (
    "llama_dynamic",
    "llama_linear",
    "phi4_mini",
    "qwen3_moe_mixed",
    "deepseek_v2_groups",
)
"""Of families that are there besides; they run with the long tests."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name in VARIANTS)) for name in FAMILIES],
)
def test_logits_are_those_of_huggingface(name: str) -> None:
    golden = family_model(name)
    sequence = Sequence(golden.config, golden)
    logits = sequence.run_all(golden.input_ids)
    assert np.abs(golden.logits).max() > 1.0
    expected = chunks(golden.logits)
    assert max_error(logits, wanted_of(expected)) < MAX_ERROR
    # So are the hidden states: the head makes those logits of no others, where it has a row for
    # each of their dimensions. Phi-4-mini's here has fewer.
    tied, cap = golden.config.tie_embeddings, golden.config.logit_soft_cap
    head = golden.tensor("model.embed_tokens.weight" if tied else "lm_head.weight")
    assert np.linalg.matrix_rank(head) == min(head.shape)
    assert len(head) >= golden.config.hidden_size or name == "phi4_mini"
    logits = np.concatenate(sequence.hidden) @ head.T
    logits = logits if cap is None else cap * np.tanh(logits / cap)
    assert max_error(logits, wanted_of(expected[: len(CHUNKS)])) < MAX_ERROR


ABLATIONS: dict[str, tuple[str, dict[str, object]]] = {
    "no windows": ("mistral", {"windowed_layers": ()}),
    "no local frequencies": ("gemma3", {"local_rope_theta": None}),
    "no soft cap of scores": ("gemma2", {"attention_soft_cap": None}),
    "no soft cap of logits": ("gemma2", {"logit_soft_cap": None}),
    "positions everywhere": ("smollm3", {"unrotated_layers": ()}),
    "short factors": ("phi3", {"context_len": 32}),
    "unsharpened scores": ("deepseek_v2", {"attention_scale": 24**-0.5}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", ABLATIONS)
def test_what_makes_a_family_is_noticed(name: str) -> None:
    """The controls: a model without it is far off."""
    family, changes = ABLATIONS[name]
    golden = family_model(family)
    config = dataclasses.replace(golden.config, **changes)
    sequence = Sequence(config, golden)
    logits = [sequence.run(chunk) for chunk in chunks(golden.input_ids)[:2]]
    expected = wanted_of(chunks(golden.logits)[:2])
    assert max_error(np.concatenate(logits), expected) > 20 * MAX_ERROR


def test_every_architecture_that_is_known_has_a_module_and_a_golden() -> None:
    assert set(MODEL_CLASSES) == set(KNOWN_ARCHITECTURES)
    covered = {family_model(name).config.architecture for name in FAMILIES}
    assert covered == set(KNOWN_ARCHITECTURES)
