import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.model_tensors import expected_shapes
from jaxsgl.models import weights
from jaxsgl.models.dummy_tensors import DummyTensors
from jaxsgl.models.llama import Llama
from jaxsgl.models.sharding import Layout, resolve_layout
from jaxsgl.models.weights import load_weights
from tests.models.tiny import RandomModel, one_device_mesh, tiny_config

UNTIED = tiny_config(tie_embeddings=False, attention_bias=True)


class CountingSource(RandomModel):
    """Knows how many bytes of the tensors it gave out are still in memory."""

    def __init__(self, config):
        super().__init__(config)
        object.__setattr__(self, "alive", {})
        object.__setattr__(self, "peak_bytes", 0)
        object.__setattr__(self, "lock", threading.RLock())  # A tensor may go while one is counted.

    def tensor(self, name):
        tensor = super().tensor(name)
        with self.lock:
            self.alive[name] = tensor.nbytes
            weakref.finalize(tensor, self.alive.pop, name)
            alive_bytes = sum(list(self.alive.values()))
            object.__setattr__(self, "peak_bytes", max(self.peak_bytes, alive_bytes))
        return tensor


def load(source, dtype=jnp.float32):
    layout = resolve_layout(source.config, one_device_mesh())
    return load_weights(Llama, source.config, source, layout, dtype)


def test_every_weight_gets_values_in_the_dtype_asked_for():
    reports = []
    source = RandomModel(UNTIED)
    layout = resolve_layout(UNTIED, one_device_mesh())
    model = load_weights(
        Llama, UNTIED, source, layout, jnp.bfloat16, lambda *report: reports.append(report)
    )
    leaves = jax.tree.leaves(nnx.state(model))
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.bfloat16 for leaf in leaves)
    total = sum(leaf.nbytes for leaf in leaves)
    assert len(reports) == len(leaves)
    assert reports == sorted(reports) and reports[-1] == (total, total)


def test_the_largest_weights_are_loaded_first():
    reports, source = [0], RandomModel(UNTIED)
    layout = resolve_layout(UNTIED, one_device_mesh())
    load_weights(
        Llama, UNTIED, source, layout, jnp.bfloat16, lambda done, total: reports.append(done)
    )
    sizes = np.diff(reports).tolist()
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 3


def test_merged_weights_keep_every_head():
    source = RandomModel(UNTIED)
    layer = load(source).layers[1]
    q = source.tensor("model.layers.1.self_attn.q_proj.weight").reshape(4, 16, 64)
    k = source.tensor("model.layers.1.self_attn.k_proj.weight").reshape(2, 16, 64)
    v_bias = source.tensor("model.layers.1.self_attn.v_proj.bias").reshape(2, 16)
    qkv = np.asarray(layer.attention.qkv[...])
    np.testing.assert_array_equal(qkv[:, :2].reshape(4, 16, 64), q)
    np.testing.assert_array_equal(qkv[:, 2], k)
    np.testing.assert_array_equal(np.asarray(layer.attention.qkv_bias[...])[:, 3], v_bias)


def test_repeated_kv_heads_serve_their_own_query_heads():
    config = tiny_config()
    layout = Layout(one_device_mesh(), (), kv_repeat=2, notes=())
    source = RandomModel(config)
    layer = load_weights(Llama, config, source, layout, jnp.float32).layers[0]
    qkv = np.asarray(layer.attention.qkv[...])
    q = source.tensor("model.layers.0.self_attn.q_proj.weight").reshape(4, 16, 64)
    k = source.tensor("model.layers.0.self_attn.k_proj.weight").reshape(2, 16, 64)
    for q_head in range(4):
        np.testing.assert_array_equal(qkv[q_head, 0], q[q_head])
        np.testing.assert_array_equal(qkv[q_head, 1], k[q_head // 2])


LARGEST_BYTES = 2 * 96 * 64 * 4
"""Gate and up, which lie in one weight, in float32."""


@pytest.mark.parametrize("ahead_bytes", [0, 2 * LARGEST_BYTES, 4 * LARGEST_BYTES])
def test_the_host_holds_no_more_than_one_weight_and_what_is_ahead(monkeypatch, ahead_bytes):
    monkeypatch.setattr(weights, "READ_AHEAD_BYTES", ahead_bytes)
    source = CountingSource(tiny_config(num_layers=8))
    # In float32 a CPU device may adopt the host's memory as its own.
    load(source, jnp.bfloat16)
    assert LARGEST_BYTES <= source.peak_bytes <= LARGEST_BYTES + ahead_bytes
    assert not source.alive


def test_weights_are_read_while_others_are_placed():
    """Of three layers' matrices, the second is not there before the third is asked for. The first
    is waited for, and read alone."""
    third = "model.layers.2.mlp.up_proj.weight"

    class Waiting(RandomModel):
        def tensor(self, name):
            if name == third:
                asked.set()
            elif name == "model.layers.1.mlp.up_proj.weight":
                assert asked.wait(10.0)
            return super().tensor(name)

    asked = threading.Event()
    load(Waiting(tiny_config(num_layers=3)))


@pytest.mark.parametrize("value_bytes", [2, 4])
def test_values_that_take_less_are_read_further_ahead(monkeypatch, value_bytes):
    threads = []

    class Halves(RandomModel):
        def tensor(self, name):
            if name.endswith("gate_proj.weight"):
                threads.append(threading.current_thread())
            return super().tensor(name).astype(jnp.bfloat16)

    monkeypatch.setattr(weights, "READ_AHEAD_BYTES", LARGEST_BYTES)
    source = Halves(tiny_config())
    layout = resolve_layout(source.config, one_device_mesh())
    load_weights(Llama, source.config, source, layout, jnp.bfloat16, value_bytes=value_bytes)
    # Twice the bytes of gate and up have to fit, for merging them.
    is_ahead = [thread is not threading.current_thread() for thread in threads]
    assert is_ahead == [False, value_bytes == 2]


def test_an_error_of_a_reading_thread_is_the_load_s():
    failure = CheckpointError("model.safetensors: 'model.norm.weight' is cut short")

    class CutShort(RandomModel):
        def tensor(self, name):
            if name == "model.norm.weight":
                raise failure
            return super().tensor(name)

    with pytest.raises(CheckpointError) as caught:
        load(CutShort(tiny_config()))
    assert caught.value is failure
    assert not [each for each in threading.enumerate() if each.name.startswith("read-ahead")]


def test_what_is_made_on_devices_is_not_made_ahead():
    threads = set()

    class Drawn:
        """Gives values by name to `DummyTensors`, and notes who asked."""

        def shape(self, name):
            return expected_shapes(UNTIED)[name]

        def drawn(self, name):
            threads.add(threading.current_thread())
            return np.ones(7, np.float32)

    layout = resolve_layout(UNTIED, one_device_mesh())
    tensors = DummyTensors(Drawn(), layout.mesh)
    load_weights(Llama, UNTIED, tensors, layout, jnp.bfloat16)
    assert threads == {threading.current_thread()}


def test_a_tensor_of_the_wrong_shape_is_refused():
    class Wrong(RandomModel):
        def tensor(self, name):
            tensor = super().tensor(name)
            return tensor[:-1] if name == "model.embed_tokens.weight" else tensor

    with pytest.raises(ValueError, match=r"\(127, 64\) where \(128, 64\)"):
        load(Wrong(tiny_config()))
