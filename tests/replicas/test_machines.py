from __future__ import annotations

import pytest

from jaxsgl.config import ConfigError, EngineConfig, ReplicasConfig
from jaxsgl.replicas.fleet import Device
from jaxsgl.replicas.machines import choose_launcher, plan_world

TWO = {"nnodes": 2, "dist_init_addr": "host:1", "world_key_file": "key"}


def chosen(launcher: str | None = None, ray_address: str | None = None, **settings) -> str:
    replicas = ReplicasConfig(launcher=launcher, ray_address=ray_address)
    return choose_launcher(EngineConfig(**settings), replicas)


def test_who_starts_the_processes():
    assert chosen() == "local"
    assert chosen(launcher="local") == "local"
    assert chosen("ray", "host:1", mesh="dp=2") == "ray"
    assert chosen(**TWO) == "static"
    assert chosen(**TWO, node_rank=1, launcher="static") == "static"


@pytest.mark.parametrize(
    ("settings", "launcher", "message"),
    [
        ({}, "static", "--launcher static is for --nnodes of 2"),
        (TWO, "local", "--nnodes 2 needs --launcher static, not local"),
        ({"node_rank": 1}, None, "--node-rank 1 is none of --nnodes 1"),
        (TWO | {"node_rank": 2}, None, "--node-rank 2 is none of --nnodes 2"),
        (TWO | {"dist_init_addr": None}, None, "--nnodes 2 needs --dist-init-addr"),
        (TWO | {"world_key_file": None}, None, "--nnodes 2 needs --world-key-file"),
        ({"dist_init_addr": "host:1"}, None, "--dist-init-addr is for --nnodes of 2"),
        (TWO, "ray", "--nnodes 2 needs --launcher static, not ray"),
        ({}, "ray", "--launcher ray needs --dp and --tp, or --mesh"),
        ({"ray_address": "host:1"}, None, "--ray-address is for --launcher ray, not local"),
        ({"world_key_file": "key"}, None, "--world-key-file is for --nnodes of 2"),
    ],
)
def test_settings_that_contradict_each_other(settings, launcher, message):
    with pytest.raises(ConfigError, match=message):
        chosen(launcher, **settings)


def gpus(count: int) -> list[Device]:
    return [Device(str(n), "NVIDIA H100 80GB HBM3") for n in range(count)]


@pytest.mark.parametrize(
    ("rank", "num_gpus", "here", "elsewhere"),
    [
        (0, 0, ("0", "1"), ("1:0", "1:1")),
        (0, 8, ("0", "1"), ("1:0", "1:1")),
        (1, 2, ("0", "1"), ("0:0", "0:1")),
    ],
)
def test_each_machine_has_an_equal_share(rank, num_gpus, here, elsewhere):
    config = EngineConfig(**TWO, node_rank=rank, mesh="tp=2,fsdp=2")
    fleet = plan_world(config, gpus(num_gpus))
    (replica,) = fleet.replicas
    assert (fleet.mesh, replica.devices, replica.elsewhere) == ("tp=2,fsdp=2", here, elsewhere)
    assert fleet.device_kind == ("GPU" if num_gpus else "CPU")


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (None, "--nnodes 2 needs --tp or --mesh"),
        ("dp=2,tp=2", "makes one replica"),
        ("tp=3", "3 devices, which 2 machines cannot share"),
        ("tp=4", "each machine has 2 devices of the mesh; this has 1"),
    ],
)
def test_a_mesh_that_machines_cannot_share(mesh, message):
    with pytest.raises(ConfigError, match=message):
        plan_world(EngineConfig(**TWO, mesh=mesh), gpus(1))
