"""Counters of the server, figures of the devices."""

import ctypes

import aiohttp
import pytest

from bench.serving.client import Clock
from bench.serving.nvml import Nvml
from bench.serving.server_watch import Sample, ServerWatch, growth, parse_metrics
from jaxsgl.config import ServerConfig
from jaxsgl.interface import EngineStats
from tests.server.conftest import serve

SGLANG = """\
# HELP sglang:num_running_reqs Running
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{tp_rank="0"} 3.0
sglang:prompt_tokens_total{tp_rank="0"} 100.0
sglang:prompt_tokens_total{tp_rank="1"} 20.0 1700000000000
sglang:unknown_total 5.0
process_cpu_seconds_total 7.0
"""
VLLM = 'vllm:num_requests_waiting{engine="0"} 2\nvllm:prompt_tokens_cached_total 1e3\n'


def test_names_of_three_servers_and_sums_over_labels():
    assert parse_metrics(SGLANG) == {"num_running": 3.0, "prompt_tokens": 120.0}
    assert parse_metrics(VLLM) == {"num_waiting": 2.0, "cached_tokens": 1000.0}
    assert parse_metrics("jaxsgl_recompiles_total 4.0\n") == {"recompiles": 4.0}
    assert parse_metrics("<html>") == {}


def test_growth_is_between_the_first_and_the_last_look_that_worked():
    looks = [
        Sample(0, {"prompt_tokens": 5.0, "num_running": 1.0}),
        Sample(1, {"prompt_tokens": 9.0, "num_running": 3.0}),
        Sample(2, {}),
    ]
    assert growth(looks) == {"prompt_tokens": 4.0}
    assert growth(looks[1:]) == {}
    assert growth([looks[1], looks[0]]) == {}


async def test_every_figure_is_found_on_our_own_server():
    async with serve(ServerConfig()) as served, aiohttp.ClientSession() as session:
        served.engine.stats = lambda: EngineStats()
        watch = ServerWatch(session, served.url + "/", Clock(), None)
        await watch.look()
        gone = ServerWatch(session, "http://127.0.0.1:1", Clock(), None)
        await gone.look()
    assert {
        "num_running", "num_waiting", "num_slots", "prompt_tokens", "cached_tokens", "recompiles",
        "retractions", "generated_tokens", "ttft_sum_s", "ttft_count", "inter_token_sum_s",
        "inter_token_count",
    } == set(watch.samples[0].metrics)  # fmt: skip
    assert gone.samples[0].metrics == {}


class FakeLibrary:
    """Two devices; the figures of a device depend on its handle."""

    def __init__(self, status=0):
        self.status, self.running = status, False

    def nvmlInit_v2(self):
        self.running = True
        return self.status

    def nvmlShutdown(self):
        self.running = False
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):
        device._obj.value = 100 + index
        return 0

    def nvmlDeviceGetUtilizationRates(self, device, utilization):
        assert isinstance(device, ctypes.c_void_p)
        utilization._obj.gpu = device.value - 50
        return self.status

    def nvmlDeviceGetMemoryInfo(self, device, memory):
        memory._obj.used = device.value << 30
        return 0


async def test_devices_are_read_beside_the_counters():
    library = FakeLibrary()
    nvml = Nvml(library)
    async with aiohttp.ClientSession() as session:
        watch = ServerWatch(session, "http://127.0.0.1:1", Clock(), nvml)
        await watch.look()
    assert watch.samples[0].devices == [
        {"utilisation": 0.5, "memory_used_bytes": 100 << 30},
        {"utilisation": 0.51, "memory_used_bytes": 101 << 30},
    ]
    library.status = 15
    assert nvml.read() == []
    nvml.close()
    assert not library.running
    with pytest.raises(OSError, match="9"):
        Nvml(FakeLibrary(status=9))
