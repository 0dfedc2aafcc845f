"""Restores converted models onto meshes of several sizes: `python -m tests.loading.orbax_mesh_child
FOLDER`, one line per case that came out as if read from the source.

A process of its own, because the number of host devices is fixed once jax has started.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxsgl.convert import convert
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.orbax_checkpoint import OrbaxCheckpoint
from jaxsgl.models.llama import Llama
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.weights import Model, load_weights
from jaxsgl.runner.mesh import make_mesh
from tests.models.tiny import RandomModel, tiny_config

SHAPES = {
    # Two kv heads: one on each of two devices, and each repeated on four.
    "heads_spread": tiny_config(num_q_heads=8, mlp_size=128, attention_bias=True),
    "attention_whole": tiny_config(num_q_heads=9, num_kv_heads=3, mlp_size=128),
    "untied": tiny_config(tie_embeddings=False),
}


class Source(RandomModel):
    tokenizer_source = None


def equal(one: Model, other: Model) -> bool:
    """Whether the same values lie in the same places."""
    pairs = zip(nnx.state(one).flat_state(), nnx.state(other).flat_state(), strict=True)
    return all(
        name == other_name
        and a[...].sharding == b[...].sharding
        and a[...].dtype == b[...].dtype
        and np.array_equal(a[...], b[...])
        for (name, a), (other_name, b) in pairs
    )


def main(folder: Path) -> None:
    meshes = {tp: make_mesh({"tp": tp}) for tp in (4, 2, 1)}
    for shape, config in SHAPES.items():
        source = Source(config)
        convert(source, folder / shape, "float32")
        checkpoint = open_checkpoint(folder / shape)
        assert isinstance(checkpoint, OrbaxCheckpoint)
        for tp, mesh in meshes.items():
            layout = resolve_layout(config, mesh)
            for dtype in (jnp.float32, jnp.bfloat16):
                restored = checkpoint.restore(Llama, layout, dtype, lambda done, total: None)
                read = load_weights(Llama, config, source, layout, dtype)
                control = load_weights(Llama, config, Source(config, seed=1), layout, dtype)
                if equal(restored, read) and not equal(restored, control):
                    sys.stdout.write(f"{shape} tp={tp} {np.dtype(dtype).name}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
