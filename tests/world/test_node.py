"""A machine of rank 1 or more keeps a follower running."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil

from jaxsgl.config import EngineConfig
from jaxsgl.logs import LogSettings
from jaxsgl.replicas.replica_host import Outcome
from jaxsgl.world.node import keep_following
from tests.actors.waiting import until

CONFIG = EngineConfig(nnodes=2, node_rank=1, dist_init_addr="host:1", world_key_file="key")
CHILD = """
import json, os, sys, time
start = json.loads(sys.stdin.readline())
assert start["config"]["node_rank"] == 1
with open(sys.argv[1], "a") as file:
    file.write(f"{start['epoch']} {os.getpid()}\\n")
if start["epoch"] == int(sys.argv[2]):
    time.sleep(600)
os._exit(int(sys.argv[3]))
"""


def followers(log: Path, last: int, exit_code: int) -> asyncio.Task[None]:
    """Each writes its epoch and its process; that of epoch `last` stays, others exit."""
    command = (sys.executable, "-c", CHILD, str(log), str(last), str(exit_code))
    return asyncio.create_task(keep_following(CONFIG, LogSettings(), dict(os.environ), command))


def lives(log: Path) -> list[list[int]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [[int(number) for number in line.split()] for line in lines]


async def test_one_that_ends_is_followed_by_another(tmp_path: Path):
    log = tmp_path / "log"
    following = followers(log, last=1, exit_code=Outcome.ORPHANED)
    await until(lambda: len(lives(log)) == 2, timeout_s=120)
    (first, first_id), (second, second_id) = lives(log)
    assert (first, second) == (0, 1) and first_id != second_id
    following.cancel()
    await asyncio.wait({following})
    assert not psutil.pid_exists(second_id)


async def test_one_that_cannot_start_is_the_last(tmp_path: Path):
    log = tmp_path / "log"
    await followers(log, last=-1, exit_code=Outcome.START_FAILED)
    assert len(lives(log)) == 1
