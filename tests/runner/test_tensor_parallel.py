"""A model spread over host devices, by whatever rules, answers as it does on one."""

import json
import subprocess
import sys

import numpy as np
import pytest

from jaxsgl.models.sharding_rules import PRESETS
from tests.models.families import FAMILIES, family_model

MAX_ERROR = 1e-4
PAIRS = "mlp=fsdp+tp,q_heads=tp,kv_heads=tp"
QUICK = [
    "llama,fsdp=2+tp=2,fsdp-megatron",
    "qwen2,tp=4,megatron",
    "odd_heads,tp=2,megatron",
    "experts:int4,tp=2+ep=2,megatron",
]


def child(jobs):
    command = [sys.executable, "-m", "tests.runner.mesh_child", *jobs]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def on_one(job):
    return f"{job.split(',')[0]},tp=1,megatron"


def agree(one, other):
    names = ("logprobs", "hidden")
    errors = [np.abs(np.subtract(one[name], other[name])).max() for name in names]
    return one["tokens"] == other["tokens"] and max(errors) < MAX_ERROR


@pytest.fixture(scope="module")
def answers():
    return child(sorted({on_one(job) for job in QUICK}) + QUICK)


@pytest.mark.parametrize("job", QUICK)
def test_more_devices_change_no_answer(answers, job):
    assert agree(answers[on_one(job)], answers[job])


def test_what_did_not_fit_is_noted(answers):
    assert answers["qwen2,tp=4,megatron"]["notes"] == ["each of 2 kv heads repeated 2 times"]
    (note,) = answers["odd_heads,tp=2,megatron"]["notes"]
    assert note.startswith("attention replicated")


def test_models_of_other_shapes_do_not_agree(answers):
    """The control."""
    assert not agree(answers["llama,tp=1,megatron"], answers["odd_heads,tp=1,megatron"])
    assert not agree(answers["llama,tp=1,megatron"], answers["qwen2,tp=1,megatron"])


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["int8", "fp8", "int4"])
def test_quantised_experts(scheme):
    """The largest difference is that of float32 sums, not of roundings."""
    meshes = ["ep=2", "tp=2", "tp=4", "fsdp=2+ep=2"]
    rules = {"fsdp=2+ep=2": "fsdp-megatron"}
    jobs = [f"experts:{scheme},{mesh},{rules.get(mesh, 'megatron')}" for mesh in meshes]
    answers = child([on_one(jobs[0]), *jobs])
    for job in jobs:
        assert agree(answers[on_one(job)], answers[job]), job
    plain = child([f"experts,{mesh},megatron" for mesh in ("tp=1", "ep=2")])
    assert not agree(answers[on_one(jobs[0])], plain["experts,tp=1,megatron"])
    assert agree(*plain.values())


@pytest.mark.long
@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_every_preset(model, tp):
    meshes = [f"tp={tp}"] if tp == 2 else [f"tp={tp}", f"fsdp=2+tp={tp // 2}"]
    rules = [*PRESETS, *([PAIRS] if tp > 2 else [])]
    jobs = [f"{model},{meshes[rule == PAIRS]},{rule}" for rule in rules]
    jobs += [f"{model},{mesh},fsdp-megatron" for mesh in meshes[1:]]
    answers = child([on_one(jobs[0]), *jobs])
    assert len(answers) == 1 + len(jobs)
    for job in jobs:
        assert agree(answers[on_one(job)], answers[job]), job


EXPERT_MESHES = ["ep=2", "tp=2+ep=2"]


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name):
    """Over two and four devices, and with the experts of those that have some shared out."""
    meshes = ["tp=2", "tp=4"]
    if family_model(name).config.experts is not None:
        meshes += EXPERT_MESHES
    jobs = [f"{name},{mesh},megatron" for mesh in meshes]
    answers = child([on_one(jobs[0]), *jobs])
    for job in jobs:
        assert agree(answers[on_one(job)], answers[job]), job
