"""`python -m jaxsgl.serve` in a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "jaxsgl.serve")
END_TIMEOUT_S = 60.0
"""What a server gets to exit once nothing keeps it. Far more than it needs."""


class ServerProcess:
    """A server on a free port. `close` it in the end; nothing of it may be left then."""

    def __init__(self, log: Path, *args: str) -> None:
        self.url = ""
        """Known once the server is ready."""
        self._log = log
        with log.open("wb") as stderr:
            self._popen = subprocess.Popen(
                [*COMMAND, "--port", "0", *args],
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=ROOT,
                text=True,
            )
        self.process = psutil.Process(self._popen.pid)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """All it wrote to standard error."""
        return self._log.read_text()

    def wait_until_ready(self) -> str:
        """The line that says so."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        ready = re.match(r"jaxsgl ready at (\S+) ", line)
        if not ready:
            ended = "it runs on" if line else f"it ended with {self.wait_for_exit()}"
            raise AssertionError(f"said {line!r}, {ended}, and on standard error:\n{self.log}")
        self.url = ready[1]
        return line

    def replica(self) -> psutil.Process:
        (child,) = self.process.children()
        return child

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait_for_exit(self) -> int:
        return self._popen.wait(END_TIMEOUT_S)

    def close(self) -> None:
        left = [self.process, *self.process.children()] if self._popen.poll() is None else []
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):  # it goes with its parent
                process.kill()
        self._popen.wait()
        if self._popen.stdout is not None:
            self._popen.stdout.close()
