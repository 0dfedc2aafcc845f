"""The model against logits that HuggingFace computed, in every way of cutting the tokens into
steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgl.models.attention import AttentionKind, ForwardBatch
from jaxsgl.models.llama import Llama
from jaxsgl.models.registry import model_class
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.weights import load_weights
from tests.models.tiny import GOLDEN_MODELS, GoldenModel, golden_model, one_device_mesh

PAGE_SIZE = 5
NUM_PAGES = 33
PREFILL_SIZE = 50
MAX_ERROR = 1e-4


class Sequence:
    """One sequence on shuffled pages of its own cache."""

    def __init__(self, golden: GoldenModel) -> None:
        layout = resolve_layout(golden.config, one_device_mesh())
        self.model = load_weights(Llama, golden.config, golden, layout, jnp.float32)
        config = golden.config
        shape = (config.num_layers * NUM_PAGES, PAGE_SIZE, config.num_kv_heads, config.head_dim)
        # Whatever a page held before must not matter.
        stale = jnp.full(shape, jnp.nan, jnp.float32)
        self.kv = (stale, stale)
        self.pages = np.random.default_rng(0).permutation(np.arange(1, NUM_PAGES))
        self.len = 0

    def run(self, token_ids: np.ndarray, mode: str) -> np.ndarray:
        """Logits after each of the next tokens. Prefill is padded to one size for all tests."""
        num = len(token_ids)
        size = 1 if mode == "decode" else PREFILL_SIZE
        positions = self.len + np.arange(num)
        self.len += num

        def padded(values: np.ndarray) -> np.ndarray:
            return np.pad(values, (0, size - num))

        batch = ForwardBatch(
            token_ids=padded(token_ids),
            positions=padded(positions),
            write_page=padded(self.pages[positions // PAGE_SIZE]),
            write_offset=padded(positions % PAGE_SIZE),
            q_start=np.array([0, num]),
            kv_len=np.array([self.len]),
            page_table=self.pages[None],
            logit_idx=padded(np.arange(num)),
        )
        batch = jax.tree.map(lambda array: jnp.asarray(array, jnp.int32), batch)
        logits, self.kv = _forward(self.model, batch, self.kv, AttentionKind(mode, "xla"))
        return np.asarray(logits)[:num]


@jax.jit(static_argnames="kind")
def _forward(model, batch, kv, kind):
    return model(batch, kv, kind)


def max_error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(logits - expected).max())


@pytest.fixture(params=GOLDEN_MODELS)
def golden(request):
    return golden_model(request.param)


def test_prefill_of_the_whole_sequence(golden):
    logits = Sequence(golden).run(golden.input_ids, "mixed")
    assert max_error(logits, golden.logits) < MAX_ERROR


def test_prefill_in_chunks_that_cross_pages(golden):
    sequence = Sequence(golden)
    chunks = np.split(golden.input_ids, 4)
    logits = np.concatenate([sequence.run(chunk, "mixed") for chunk in chunks])
    assert max_error(logits, golden.logits) < MAX_ERROR


def test_decode_token_by_token(golden):
    sequence = Sequence(golden)
    logits = [sequence.run(golden.input_ids[i : i + 1], "decode") for i in range(48)]
    assert max_error(np.concatenate(logits), golden.logits) < MAX_ERROR


def test_the_tolerance_notices_a_wrong_token(golden):
    """The control: a different first token must show in every later row."""
    ids = golden.input_ids.copy()
    ids[0] = (ids[0] + 1) % golden.config.vocab_size
    logits = Sequence(golden).run(ids, "mixed")
    assert (np.abs(logits - golden.logits).max(axis=1) > MAX_ERROR).all()


def test_an_unknown_architecture_lists_the_known():
    with pytest.raises(ValueError, match=r"'mamba' is unknown; known: llama"):
        model_class("mamba")
