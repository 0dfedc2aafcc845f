"""What the GPUs of this machine do, from the driver's own library, where there is one."""

from __future__ import annotations

import ctypes
from typing import Any

LIBRARY = "libnvidia-ml.so.1"


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class Nvml:
    """Calls of NVML that take a few milliseconds at most.

    `library` has NVML's C functions; OSError if it cannot be started.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._check(library.nvmlInit_v2())
        count = ctypes.c_uint()
        self._check(library.nvmlDeviceGetCount_v2(ctypes.byref(count)))
        self._devices = [self._device(index) for index in range(count.value)]

    @classmethod
    def load(cls) -> Nvml | None:
        """None on a machine without an NVIDIA driver."""
        try:
            return cls(ctypes.CDLL(LIBRARY))
        except OSError:
            return None

    def read(self) -> list[dict[str, float]]:
        """Per device: `utilisation`, the share of the last sampling period in which a kernel ran,
        and `memory_used_bytes`. Nothing if the driver does not say."""
        try:
            return [self._read(device) for device in self._devices]
        except OSError:
            return []

    def close(self) -> None:
        self._library.nvmlShutdown()

    def _device(self, index: int) -> ctypes.c_void_p:
        device = ctypes.c_void_p()
        self._check(self._library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)))
        return device

    def _read(self, device: ctypes.c_void_p) -> dict[str, float]:
        utilization, memory = _Utilization(), _Memory()
        self._check(self._library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(utilization)))
        self._check(self._library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)))
        return {"utilisation": utilization.gpu / 100, "memory_used_bytes": memory.used}

    def _check(self, status: int) -> None:
        if status:
            raise OSError(f"NVML says {status}")
