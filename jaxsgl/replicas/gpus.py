"""The GPUs of this machine, found without loading a GPU library into this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib.util import find_spec

from jaxsgl.replicas.fleet import Device

_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader")
_TIMEOUT_S = 30.0


async def find_gpus(environment: Mapping[str, str]) -> list[Device]:
    """Those that a replica would run on: none where jax has no CUDA plugin or is told to use
    another platform, and only those that CUDA_VISIBLE_DEVICES names."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    if not any(find_spec(plugin) for plugin in _PLUGINS):
        return []
    return visible_gpus(await _list(), environment.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(lines: str, visible: str | None) -> list[Device]:
    """GPUs of lines of `index, uuid, name`, chosen and ordered as CUDA_VISIBLE_DEVICES says: from
    the first entry on that names none, everything is ignored."""
    rows = [[part.strip() for part in line.split(",", 2)] for line in lines.splitlines() if line]
    gpus = [(row[0], row[1], row[2]) for row in rows if len(row) == 3]
    if visible is None:
        return [Device(index, model) for index, _, model in gpus]
    chosen: list[Device] = []
    for entry in visible.split(","):
        entry = entry.strip()
        models = [model for index, uuid, model in gpus if entry and _names(entry, index, uuid)]
        if not models:
            break
        chosen.append(Device(entry, models[0]))
    return chosen


def _names(entry: str, index: str, uuid: str) -> bool:
    return entry == index or (entry.startswith("GPU-") and uuid.startswith(entry))


async def _list() -> str:
    """What nvidia-smi says; nothing where there is none."""
    try:
        process = await asyncio.create_subprocess_exec(
            *_QUERY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return ""
    return output.decode() if process.returncode == 0 else ""
