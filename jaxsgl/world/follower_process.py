"""What a machine of rank 1 or more runs: `python -m jaxsgl.world.follower_process`, with its Start
as one line of JSON on standard input."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import NoReturn

import msgspec

from jaxsgl.logs import set_up_logging
from jaxsgl.replicas.child import die_with_parent
from jaxsgl.replicas.frames import Start
from jaxsgl.world.follower import follow


def main() -> NoReturn:
    """Exits with an Outcome. SIGINT is ignored: a terminal sends it to all, and the parent
    decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    start = msgspec.json.decode(sys.stdin.readline(), type=Start)
    set_up_logging(start.log)
    outcome = follow(start.config)
    logging.shutdown()
    # The leader may be gone already, and jax would wait for it.
    os._exit(outcome)


if __name__ == "__main__":
    main()
