"""Compiles the programs of a model for a device that is not there, and prints what became of each
as JSON: `python -m tests.aot.compile_child h100|v5e|v6e TP DUMP_FOLDER none|int8|fp8|int4
llama|experts`.

A process of its own, because XLA reads its flags once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, Mesh

from bench.collectives import read_collectives
from jaxsgl.models.model_config import Experts
from jaxsgl.models.quantization.family import online_head, quantized_family
from jaxsgl.models.registry import model_class
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.runner.buckets import Bucket
from jaxsgl.runner.platform import PLATFORMS
from jaxsgl.runner.programs import Programs
from jaxsgl.step import StepLimits
from tests.models.tiny import tiny_config

LLAMA = tiny_config(
    num_layers=2,
    hidden_size=4096,
    num_q_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_size=14336,
    vocab_size=32768,
    context_len=4096,
    tie_embeddings=False,
)
"""Llama 3.1 8B, with fewer layers and tokens."""
EXPERTS = dataclasses.replace(
    LLAMA,
    architecture="qwen3_moe",
    hidden_size=2048,
    num_kv_heads=4,
    qk_norm=True,
    experts=Experts(num_experts=128, num_chosen=8, mlp_size=768, normalised=True),
)
"""Qwen3 30B, likewise."""
LIMITS = StepLimits(
    num_pages=4097,  # 128 MiB of keys per layer, and as much of values
    page_size=16,
    num_slots=64,
    max_rows=64,
    max_tokens=4096,
    max_logits=64,
    max_pages_per_row=256,
    vocab_size=LLAMA.vocab_size,
)
BUCKETS = (
    Bucket("decode", 1, 1, 1),
    Bucket("decode", 64, 64, 64),
    Bucket("mixed", 256, 64, 64),
    Bucket("chain", 4, 1, 4),
    Bucket("chain", 256, 64, 256),
)
GPU_BUCKETS = (Bucket("shared", 64, 64, 64), Bucket("mixed", 4096, 64, 64))
"""On GPUs alone: no other kernels make use of prefixes that rows share, and nowhere else are large
steps launched otherwise than small ones."""
MOST_PAGES = 550_001
"""On an H100, where they leave little of its memory, as they do in service."""
H100 = AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
COPY = re.compile(r" = (.*?) copy(-start)?\(")
ARRAY = re.compile(r"\b(?:bf|f|s|u|pred)(\d*)\[([\d,]*)\]")
ON_CHIP = "S(1)"


@contextlib.contextmanager
def devices(target: str, tp: int) -> Iterator[list[jax.Device]]:
    """So many devices of the target, as far as compilers can tell."""
    if target == "h100":
        description = Path(__file__).with_name("h100.txtpb").read_text()
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=description, topology=f"{tp}x1x1"
        )
        mesh = AbstractMesh((), (), abstract_device=H100)
        with jax.sharding.use_abstract_mesh(mesh):
            yield list(topology.devices)
    else:
        yield list(topologies.get_topology_desc(f"{target}:2x2", "tpu").devices)[:tp]


def largest_copy(hlo: str) -> tuple[int, str]:
    """The largest array that a program copies as it is, or to lie otherwise in memory: its bytes,
    and the instruction. What is fetched as it is to a TPU's memory on the chip does not count,
    since it is read anyway; what is turned round on its way there does."""
    found = [(0, "")]
    for line in hlo.splitlines():
        copy = COPY.search(line)
        if copy is None:
            continue
        result, is_started = copy.groups()
        if is_started and ON_CHIP in result:
            continue
        for bits, shape in ARRAY.findall(result):
            num_bytes = int(bits or 8) // 8 * math.prod(int(n) for n in shape.split(",") if n)
            found.append((num_bytes, line.strip()[:300]))
    return max(found)


def thunks(folder: Path, name: str, indent: int = 0) -> list[str]:
    """What a GPU is told to do in one run of the program, kind by kind; indented by 4, what it is
    told in each round of a loop."""
    found = folder.glob(f"*jit_{name}.*thunk_sequence*.txt")
    # Where graphs were made, the passes that made them left another file.
    path = max(found, key=lambda each: "after_thunk_passes" in each.name)
    text = path.read_text().partition("body:")[2] if indent else path.read_text()
    return re.findall(rf"^ {{{indent}}}\d+: (k\w+)", text, re.MULTILINE)


def main(target: str, tp: int, folder: Path, scheme: Any, name: str) -> None:
    config = {"llama": LLAMA, "experts": EXPERTS}[name]
    platform = PLATFORMS["gpu" if target == "h100" else "tpu"]
    told: dict[str, dict[str, object]] = {}
    with devices(target, tp) as found:
        mesh = Mesh(np.array(found), ("tp",))
        layout = resolve_layout(config, mesh, matrix_order=platform.matrix_order)
        family = model_class(config.architecture)
        if scheme != "none":
            family = quantized_family(family, scheme, online_head(scheme))
        model = family(config, layout, jnp.bfloat16)
        backend = platform.backends[0]
        num_pages = tp * MOST_PAGES if target == "h100" else LIMITS.num_pages
        limits = dataclasses.replace(LIMITS, num_pages=num_pages)
        buckets = (*BUCKETS, *GPU_BUCKETS) if target == "h100" else BUCKETS
        programs = Programs(model, config, layout, limits, buckets, jnp.bfloat16, platform, backend)
        is_plain = config is LLAMA and scheme == "none"
        for call in programs.calls():
            # Programs of other kinds know nothing of the model: once is enough.
            if call.kind not in ("forward", "chain") and not is_plain:
                continue
            compiled = call.run.lower(*call.args).compile()
            memory, name = compiled.memory_analysis(), call.run.__name__
            told[name] = {
                "kind": call.kind,
                "in_place": memory.alias_size_in_bytes,
                "largest_copy": largest_copy(compiled.as_text()),
                "temporary": memory.temp_size_in_bytes,
                "kernels": compiled.as_text().count(backend),
                "computed_twice": compiled.as_text().count("remat"),
                "gathered": read_collectives(compiled.as_text()).num_bytes.get("all-gather", 0),
            }
            if target == "h100" and call.kind in ("forward", "chain", "draw"):
                told[name]["thunks"] = thunks(folder, name)
            if call.kind == "forward":
                options = programs.compiler_options[call.key]
                told[name]["is_graph"] = options.get("xla_gpu_enable_command_buffer") != ""
            if target == "h100" and call.kind == "chain":
                told[name]["rounds"] = thunks(folder, name, indent=4)
    kv = num_pages * LIMITS.page_size * config.num_kv_heads * config.head_dim * 2
    logits = 4 * LIMITS.max_logits * config.vocab_size
    sizes = {"kv_bytes": 2 * config.num_layers * kv // tp, "logits_bytes": logits}
    json.dump(sizes | {"programs": told}, sys.stdout)


if __name__ == "__main__":
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
