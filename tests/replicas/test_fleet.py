from __future__ import annotations

import pytest

from jaxsgl.config import ConfigError, ReplicasConfig
from jaxsgl.replicas.capacity import Share, active_line, loss_lines
from jaxsgl.replicas.faults import faults_of
from jaxsgl.replicas.fleet import Device, Fleet, plan_fleet
from jaxsgl.replicas.gpus import visible_gpus


def gpus(count: int, model: str = "NVIDIA H100 80GB HBM3") -> list[Device]:
    return [Device(str(n), model) for n in range(count)]


def devices(fleet: Fleet) -> list[tuple[str, ...]]:
    return [replica.devices for replica in fleet.replicas]


@pytest.mark.parametrize(
    ("mesh", "num_gpus", "num_kv_heads", "own_mesh", "groups"),
    [
        (None, 8, 8, "tp=8", [tuple("01234567")]),
        (None, 8, 3, "tp=3", [("0", "1", "2"), ("3", "4", "5")]),
        (None, 4, 2, "tp=2", [("0", "1"), ("2", "3")]),
        (None, 0, 3, "tp=1", [("0",)]),
        ("dp=2,tp=2", 4, 1, "tp=2", [("0", "1"), ("2", "3")]),
        ("tp=2", 4, 8, "tp=2", [("0", "1")]),
        ("dp=2", 4, 8, "tp=1", [("0",), ("1",)]),
        ("dp=2,tp=2", 0, 3, "tp=2", [("0", "1"), ("2", "3")]),
        ("tp=2,ep=2,dp=2", 8, 8, "tp=2,ep=2", [tuple("0123"), tuple("4567")]),
    ],
)
def test_which_replica_gets_which_devices(mesh, num_gpus, num_kv_heads, own_mesh, groups):
    fleet = plan_fleet(mesh, gpus(num_gpus), num_kv_heads, ReplicasConfig())
    assert (fleet.mesh, devices(fleet)) == (own_mesh, groups)
    assert fleet.device_kind == ("GPU" if num_gpus else "CPU")


@pytest.mark.parametrize("mesh", ["dp", "dp=0", "dp=x", "dp=2,dp=2", "=2", "", "dp=3,tp=2"])
def test_a_mesh_that_cannot_be(mesh):
    with pytest.raises(ConfigError, match="mesh"):
        plan_fleet(mesh or ",", gpus(4), 8, ReplicasConfig())


def test_weights_are_given_or_follow_from_the_models():
    def weights(found, **config):
        fleet = plan_fleet("dp=2", found, 8, ReplicasConfig(**config))
        return [replica.weight for replica in fleet.replicas], fleet.warnings

    mixed = [Device("0", "NVIDIA A100-SXM4-80GB"), Device("1", "Tesla V100-SXM2-16GB")]
    assert weights(mixed, load_balancing_policy="weighted") == ([2.0, 1.0], ())
    assert weights(mixed, replica_weights="1,3") == ([1.0, 3.0], ())
    unknown, warnings = weights(gpus(2, "Abacus 3"), load_balancing_policy="weighted")
    assert unknown == [1.0, 1.0] and "Abacus 3" in warnings[0]
    for bad in ("1", "1,0", "1,x", "1,nan", "1,inf", "1,-1", ""):
        with pytest.raises(ConfigError, match="--replica-weights"):
            weights(mixed, replica_weights=bad)


def test_gpus_are_those_that_cuda_would_see():
    lines = "0, GPU-aaa, NVIDIA A\n1, GPU-abb, NVIDIA B\n2, GPU-ccc, NVIDIA, C\n"
    assert [gpu.name for gpu in visible_gpus(lines, None)] == ["0", "1", "2"]
    assert visible_gpus(lines, "2,0") == [Device("2", "NVIDIA, C"), Device("0", "NVIDIA A")]
    assert [gpu.name for gpu in visible_gpus(lines, "GPU-ab")] == ["GPU-ab"]
    assert [gpu.name for gpu in visible_gpus(lines, "1,7,0")] == ["1"]
    assert visible_gpus(lines, "") == visible_gpus("", None) == visible_gpus("", "0") == []


def test_the_lines_that_were_promised():
    shares = [Share((str(n),), 100, in_pool=n != 2) for n in range(4)]
    assert loss_lines("GPU", ("2",), shares) == (
        "GPU 2 became unresponsive. Removed from scheduling pool.",
        "Active GPUs: [0, 1, 3]. Total capacity reduced by 25%.",
    )


def test_a_larger_replica_leaves_with_all_its_devices():
    shares = [Share(("0", "1"), 0, in_pool=True), Share(("2", "3"), 0, in_pool=False)]
    assert loss_lines("GPU", ("2", "3"), shares) == (
        "GPU 2 became unresponsive. Removed from scheduling pool.",
        "GPU 3 became unresponsive. Removed from scheduling pool.",
        "Active GPUs: [0, 1]. Total capacity reduced by 50%.",
    )
    assert active_line("CPU", []) == "Active CPUs: []."


def test_capacity_is_counted_in_pages():
    shares = [Share(("0",), 300, in_pool=True), Share(("1",), 100, in_pool=False)]
    assert loss_lines("GPU", ("1",), shares)[-1].endswith("reduced by 25%.")


def test_faults_are_for_all_replicas_or_for_one_life_of_one():
    faults = "step:1:raise,step:2:exit@1,step:3:hang@0"
    assert faults_of(faults, 1, 0) == "step:1:raise,step:2:exit"
    assert faults_of(faults, 1, 1) == faults_of(faults, 2, 0) == "step:1:raise"
    assert faults_of("step:2:exit@1", 0, 0) is None is faults_of(None, 0, 0)
    with pytest.raises(ConfigError, match="names no replica"):
        faults_of("step:2:exit@x", 0, 0)
