"""A Ray cluster of one machine that lives until its standard input ends:
`python -m tests.e2e.ray_cluster NUM_CPUS`. Its address is the first line that it prints."""

from __future__ import annotations

import sys
from importlib import import_module


def main(num_cpus: int) -> None:
    ray = import_module("ray")  # not there where this is not run
    ray.init(num_cpus=num_cpus, num_gpus=0, include_dashboard=False, log_to_driver=False)
    sys.stdout.write(ray.get_runtime_context().gcs_address + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
