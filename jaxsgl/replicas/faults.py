"""Which of the faults that a server was told to inject are for which replica. Pure."""

from __future__ import annotations

from jaxsgl.config import ConfigError


def faults_of(faults: str | None, replica_id: int, epoch: int) -> str | None:
    """Of comma-separated faults, those of a replica in its `epoch`, without the part that says so.

    `step:37:exit` is for every replica, each time it is started; `step:37:exit@1` is for replica 1
    when it is started first. Raises ConfigError.
    """
    own: list[str] = []
    for fault in (faults or "").split(","):
        what, at, where = fault.partition("@")
        if at and not where.isdecimal():
            raise ConfigError(f"fault {fault!a} names no replica; write step:N:KIND@0")
        if what and (not at or (where == str(replica_id) and epoch == 0)):
            own.append(what)
    return ",".join(own) or None
