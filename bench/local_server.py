"""A server of this machine for the time of a measurement."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

STOP_TIMEOUT_S = 30.0


@asynccontextmanager
async def local_server(*flags: str) -> AsyncIterator[str]:
    """Start `python -m jaxsgl.serve` on a free port; the URL, once it is ready.

    Raises RuntimeError if it does not start; what it has to say is on standard error. It is asked
    to stop in the end, and killed if it does not.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jaxsgl.serve", "--port", "0", "--log-level", "warning", *flags),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        ready = re.match(r"jaxsgl ready at (\S+) ", line)
        if ready is None:
            raise RuntimeError(f"the server said {line!r} instead of being ready")
        yield ready[1]
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()


async def read_metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """What the server counts, by name without prefix; samples with labels are left out."""
    async with session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "{" not in line)
    return {name.removeprefix("jaxsgl_"): float(value) for name, value in pairs}
