"""What a Ray actor does on its machine: it runs one replica process."""

from __future__ import annotations

import subprocess
import sys


class ReplicaProcess:
    """An actor. The process is a child, and dies with it."""

    def __init__(self, module: str = "jaxsgl.replicas.replica_process") -> None:
        """`module` is what the process runs."""
        self._module = module

    def run(self, address: str, token: str) -> int:
        """Run a replica that serves the front behind `address`. Its exit code, as `subprocess` has
        it."""
        command = (sys.executable, "-m", self._module, address)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, process_group=0)
        process.communicate(token + "\n")
        return process.returncode
