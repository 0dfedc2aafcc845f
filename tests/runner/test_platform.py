"""Which kernels and sizes go with which devices."""

import dataclasses

import pytest

from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.runner.buckets import Bucket
from jaxsgl.runner.platform import PLATFORMS
from pallas_kernels.paged_decode.api import BACKENDS

GPU, CPU, TPU = (PLATFORMS[name] for name in ("gpu", "cpu", "tpu"))


def test_auto_takes_the_best_kernels_of_the_devices():
    assert GPU.backend(EngineConfig(), 128) == "triton"
    assert CPU.backend(EngineConfig(), 128) == "xla"
    assert TPU.backend(EngineConfig(), 128) == "tpu"


def test_heads_and_pages_that_do_not_suit_a_tpu_are_left_to_xla():
    assert TPU.backend(EngineConfig(), 64) == "xla"
    assert TPU.backend(EngineConfig(page_size=8), 128) == "xla"
    for config, head_dim in (EngineConfig(), 64), (EngineConfig(page_size=8), 128):
        asked = dataclasses.replace(config, attention_backend="tpu")
        with pytest.raises(ConfigError, match=f"here are {head_dim} and {config.page_size}"):
            TPU.backend(asked, head_dim)


def test_kernels_can_be_asked_for():
    assert GPU.backend(EngineConfig(attention_backend="triton"), 128) == "triton"
    assert GPU.backend(EngineConfig(attention_backend="xla"), 128) == "xla"
    assert GPU.backend(EngineConfig(disable_flashinfer=True), 128) == "xla"
    assert GPU.backend(EngineConfig(disable_flashinfer=True, attention_backend="xla"), 128) == "xla"


@pytest.mark.parametrize(
    ("platform", "options", "message"),
    [
        (CPU, {"attention_backend": "tpu"}, "tpu does not run on cpu; xla do"),
        (CPU, {"attention_backend": "triton"}, "triton does not run on cpu; xla do"),
        (
            GPU,
            {"attention_backend": "triton", "disable_flashinfer": True},
            "--disable-flashinfer contradicts --attention-backend triton",
        ),
    ],
)
def test_kernels_that_cannot_run_are_refused_in_one_line(platform, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        platform.backend(EngineConfig(**options), 128)
    assert "\n" not in str(error.value)


def test_every_backend_of_a_platform_exists():
    for platform in PLATFORMS.values():
        assert set(platform.backends) <= set(BACKENDS)


def test_the_library_for_products_follows_the_rows():
    few, many = Bucket("decode", 16, 16, 16), Bucket("decode", 64, 64, 64)
    assert "xla_gpu_enable_triton_gemm" not in GPU.compiler_options(few, 1)
    assert GPU.compiler_options(many, 1)["xla_gpu_enable_triton_gemm"] is False
    assert CPU.compiler_options(many, 2) == {}


def test_collectives_are_captured_with_the_rest_of_a_step():
    options = GPU.compiler_options(Bucket("decode", 1, 1, 1), 2)
    assert "COLLECTIVES" in options["xla_gpu_enable_command_buffer"].split(",")
