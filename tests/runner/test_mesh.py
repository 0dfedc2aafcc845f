import pytest

from jaxsgl.config import ConfigError
from jaxsgl.runner.mesh import make_mesh, parse_mesh


def test_a_mesh_is_axis_and_size():
    assert parse_mesh("tp=4") == {"tp": 4}
    assert parse_mesh("fsdp=2, tp=4") == {"fsdp": 2, "tp": 4}


@pytest.mark.parametrize("text", ["", "tp", "tp=", "tp=0", "tp=-1", "tp=x", "dp=2", "tp=2,tp=2"])
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigError, match="write it like tp=2"):
        parse_mesh(text)


def test_one_device_needs_nothing():
    mesh = make_mesh({"tp": 1})
    assert mesh.shape == {"tp": 1}


def test_more_devices_than_there_are_is_an_error():
    make_mesh({"tp": 1})  # jax has its devices now
    with pytest.raises(ConfigError, match="the mesh needs 4096 devices, this machine has"):
        make_mesh({"tp": 4096})
