"""What a replica process runs: `python -m jaxsgl.replicas.replica_process SOCKET`."""

from __future__ import annotations

import sys

from jaxsgl.engine import Replica
from jaxsgl.logs import LogSettings, set_up_logging
from jaxsgl.replicas.child import run_replica

if __name__ == "__main__":
    set_up_logging(LogSettings())
    run_replica(sys.argv[1], Replica.start)
