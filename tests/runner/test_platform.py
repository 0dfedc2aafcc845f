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
    assert "xla_gpu_enable_triton_gemm" not in GPU.compiler_options(few, 1, 10**9)
    assert GPU.compiler_options(many, 1, 10**9)["xla_gpu_enable_triton_gemm"] is False
    assert CPU.compiler_options(many, 2, 10**9) == {}


def test_collectives_are_captured_with_the_rest_of_a_step():
    options = GPU.compiler_options(Bucket("decode", 1, 1, 1), 2, 10**9)
    assert "COLLECTIVES" in options["xla_gpu_enable_command_buffer"].split(",")


@pytest.mark.parametrize(
    ("num_tokens", "num_devices", "gigabytes", "is_graph"),
    [
        (512, 1, 8, False),
        (256, 1, 8, True),
        (512, 1, 2, True),
        (2048, 1, 2, False),
        (512, 2, 8, True),
    ],
)
def test_large_steps_of_one_device_are_launched_kernel_by_kernel(
    num_tokens, num_devices, gigabytes, is_graph
):
    bucket = Bucket("mixed", num_tokens, 64, 64)
    options = GPU.compiler_options(bucket, num_devices, gigabytes * 10**9)
    assert (options.get("xla_gpu_enable_command_buffer") != "") == is_graph


@pytest.mark.parametrize(
    ("platform", "num_devices", "gigabytes", "chain_len"),
    [(GPU, 2, 70, 6), (GPU, 1, 9, 6), (GPU, 1, 16, 1), (CPU, 2, 1, 1), (TPU, 2, 1, 1)],
)
def test_chains_are_for_gpus_that_would_wait_for_the_host(
    platform, num_devices, gigabytes, chain_len
):
    weight_bytes = gigabytes * 10**9
    assert platform.chain_len(EngineConfig(), num_devices, weight_bytes) == chain_len
    asked = EngineConfig(num_continuous_decode_steps=3)
    assert platform.chain_len(asked, num_devices, weight_bytes) == 3
