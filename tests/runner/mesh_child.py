"""Runs small models on meshes of forced host devices and prints what they answered, as JSON by job:
`python -m tests.runner.mesh_child llama,tp=1,megatron experts:int8,ep=2,megatron …`.

A process of its own, because the number of host devices is fixed once jax has started.
"""

import dataclasses
import json
import math
import sys

from jaxsgl.interface import ReleaseMemory, ResumeMemory, SamplingParams
from jaxsgl.models.model_config import Experts
from jaxsgl.models.sharding_rules import read_rules
from jaxsgl.runner.mesh import make_mesh, parse_mesh
from tests.models.families import FAMILIES, family_model
from tests.models.tiny import RandomModel, tiny_config
from tests.runner.driver import GREEDY, Driver
from tests.runner.tiny_runner import CHAIN, FEWEST_BUCKETS, LIMITS, make_runner

SHAPES = {
    # Two kv heads: one on each of two devices, and each repeated on four or eight.
    "llama": tiny_config(num_q_heads=8, mlp_size=128),
    "qwen2": tiny_config(
        num_q_heads=8, mlp_size=128, architecture="qwen2", attention_bias=True, tie_embeddings=False
    ),
    "odd_heads": tiny_config(num_q_heads=9, num_kv_heads=3, mlp_size=128),
    # On each of four devices 32 inputs of every matrix, which is a group of 4 bits.
    "experts": tiny_config(
        num_q_heads=8,
        architecture="qwen3_moe",
        qk_norm=True,
        experts=Experts(num_experts=4, num_chosen=2, mlp_size=128, normalised=True),
        hidden_size=128,
        num_layers=1,
    ),
}
"""Besides these, every model of tests/models/families.py is known by its name. A scheme behind a
colon quantises it."""
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2]]
SAMPLINGS = [GREEDY, SamplingParams(temperature=1.0, top_p=0.9, seed=7)]


def answers(model: str, mesh: str, rules: str) -> dict[str, object]:
    shape, _, scheme = model.partition(":")
    runner = make_runner(
        family_model(shape) if shape in FAMILIES else RandomModel(SHAPES[shape]),
        make_mesh(parse_mesh(mesh.replace("+", ","))),
        (*FEWEST_BUCKETS, CHAIN),
        rules=read_rules(rules),
        scheme=scheme or None,  # pyright: ignore[reportArgumentType]
    )
    driver = Driver(runner)
    tokens = driver.generate(PROMPTS, 12, SAMPLINGS)
    request = driver.request(PROMPTS[0])
    plan = dataclasses.replace(driver.plan([driver.prefill(request)], 20), wants_hidden=True)
    result = runner.dispatch(plan).wait()
    assert result.top_logprobs is not None and result.hidden is not None
    assert runner.recompiles == 0
    notes = runner.layout.notes
    for operation in (ReleaseMemory(), ResumeMemory()):
        runner.prepare(operation)()
    again = Driver(runner).generate(PROMPTS, 12, SAMPLINGS)
    assert again == tokens, "other answers after a release"
    chained = Driver(runner).generate(PROMPTS, 12, SAMPLINGS, chain_len=LIMITS.chain_len)
    assert chained == tokens, "other answers in chains"
    runner.close()
    logprobs, hidden = (
        array.astype(float).tolist() for array in (result.top_logprobs, result.hidden)
    )
    return {"tokens": tokens, "logprobs": logprobs, "hidden": hidden, "notes": notes}


def main(jobs: list[str]) -> None:
    split = [job.split(",", maxsplit=2) for job in jobs]
    most = max(math.prod(parse_mesh(mesh.replace("+", ",")).values()) for _, mesh, _ in split)
    make_mesh({"tp": most})  # before anything else makes jax count its devices
    json.dump({job: answers(*parts) for job, parts in zip(jobs, split, strict=True)}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
