"""A replica process that has a fake replica in it: `python -m tests.replicas.fake_child SOCKET`."""

import sys

from jaxsgl.replicas.child import run_replica
from tests.replicas.fake_replica import FakeReplica

if __name__ == "__main__":
    run_replica(sys.argv[1], FakeReplica.start)
