"""Greedy answers of one model on meshes of one, two and four devices:
`python -m tests.e2e.mesh_child smollm2|toy`, as JSON by size of the mesh.

A process of its own, because the number of host devices is fixed once jax has started.
"""

from __future__ import annotations

import json
import random
import sys

from jaxsgl.config import EngineConfig
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.locate import locate_model
from jaxsgl.runner.build import build_runner
from jaxsgl.runner.mesh import make_mesh
from jaxsgl.runner.weight_source import ModelSource
from tests.e2e.scheduled_host import Host
from tests.e2e.server_process import ROOT
from tests.models.tiny import RandomModel, tiny_config

NUM_TOKENS = 32
TOY = tiny_config(num_q_heads=64, num_kv_heads=8, mlp_size=128)


def toy_prompts() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(TOY.vocab_size) for _ in range(length)] for length in range(5, 85, 10)]


def golden_prompts() -> list[list[int]]:
    goldens = json.loads((ROOT / "tests/goldens/smollm2_greedy.json").read_text())["prompts"]
    return [golden["prompt_ids"] for golden in goldens[:8]]


def answers(model: ModelSource, prompts: list[list[int]], tp: int) -> list[list[int]]:
    """All prompts together, in as few programs as there can be."""
    config = EngineConfig(
        mesh=f"tp={tp}", max_num_reqs=len(prompts), chunked_prefill_size=64, max_total_tokens=4096
    )
    runner = build_runner(config, model, lambda stage, done, total: None)
    host = Host(runner, chunk=runner.limits.max_tokens)
    drawn = [answer.token_ids for answer in host.generate(prompts, NUM_TOKENS)]
    runner.close()
    return drawn


def main(name: str) -> None:
    make_mesh({"tp": 4})  # before anything else makes jax count its devices
    result: dict[str | int, list[list[int]]]
    if name == "toy":
        result = {tp: answers(RandomModel(TOY), toy_prompts(), tp) for tp in (1, 2, 4)}
        result["control"] = answers(RandomModel(TOY, seed=1), toy_prompts(), 1)
    else:
        smollm2 = open_checkpoint(locate_model(None))
        result = {tp: answers(smollm2, golden_prompts(), tp) for tp in (1, 2, 4)}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
