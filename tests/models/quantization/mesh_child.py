"""A child process with several devices: logits of quantised models spread over them, against those
of one device."""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxsgl.models.attention import AttentionKind, ForwardBatch
from jaxsgl.models.llama import Llama
from jaxsgl.models.quantization.codes import Scheme
from jaxsgl.models.quantization.family import quantized_family
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.sharding_rules import PRESETS
from jaxsgl.models.weights import device_bytes, load_weights
from tests.models.tiny import RandomModel, prompt_batch, tiny_config

CONFIG = tiny_config(mlp_size=128, tie_embeddings=False)
NUM_TOKENS = 12
CASES = ((2, "megatron"), (2, "fsdp"))


def logits(scheme: Scheme, num_devices: int, preset: str) -> tuple[np.ndarray[Any, Any], int]:
    """Of a prompt, and the bytes of weights on each device."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("tp",))
    layout = resolve_layout(CONFIG, mesh, PRESETS[preset])
    # On each device no more than 32 inputs of some matrices are left.
    family = quantized_family(Llama, scheme, scheme, max_group=32)
    model = load_weights(family, CONFIG, RandomModel(CONFIG), layout, jnp.float32)
    num = NUM_TOKENS
    batch = prompt_batch(num)
    shape = (2, num, CONFIG.num_kv_heads * layout.kv_repeat, CONFIG.head_dim)
    place = layout.sharding(None, None, "kv_heads", None)
    pages = jax.device_put(jnp.zeros(shape, jnp.float32), place)
    kv = ((pages, pages),) * CONFIG.num_layers
    out, _ = _forward(model, batch, kv, AttentionKind("mixed", "xla"))
    return np.asarray(out), device_bytes(model, layout)


@functools.partial(jax.jit, static_argnames="kind")
def _forward(model: Any, batch: ForwardBatch, kv: Any, kind: AttentionKind) -> Any:
    return model(batch, kv, kind)


def main() -> None:
    """For every scheme and preset: the scheme, the preset, the largest difference, and what each
    device holds of the bytes that one alone would hold."""
    jax.config.update("jax_num_cpu_devices", 2)
    schemes: tuple[Scheme, ...] = ("int8", "fp8", "int4")
    for scheme in schemes:
        alone, num_bytes = logits(scheme, 1, "megatron")
        for num_devices, preset in CASES:
            spread, part_bytes = logits(scheme, num_devices, preset)
            error = np.abs(spread - alone).max()
            sys.stdout.write(
                f"{scheme} {preset} {num_devices} {error:.3g} {part_bytes / num_bytes:.3f}\n"
            )


if __name__ == "__main__":
    main()
