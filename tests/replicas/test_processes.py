"""The same front with real processes, and what happens when one of them dies."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from jaxsgl.actors.messages import Admit, StepOutputs
from jaxsgl.config import EngineConfig
from jaxsgl.interface import EngineError, SamplingParams, Unavailable
from jaxsgl.replicas import launch as launch_module
from jaxsgl.replicas import proxy as proxy_module
from jaxsgl.replicas.launch import Ending, ProcessLaunch, StartError
from jaxsgl.replicas.replica_host import Outcome
from jaxsgl.replicas.restarts import RestartPolicy
from tests.actors.waiting import until
from tests.replicas.conftest import (
    CHILD_ENVIRONMENT,
    FAKE_CHILD,
    ROOT,
    Front,
    Limits,
    ask,
    child_processes,
)
from tests.replicas.recorder import Recorder


def child_id(front: Front) -> int:
    return int(front.pool.notes[0].removeprefix("process "))


def child_of(front: Front) -> psutil.Process:
    return psutil.Process(child_id(front))


async def is_replaced(front: Front, old: psutil.Process) -> psutil.Process:
    """The successor of a replica that has died; nothing of the old one is left."""
    await until(lambda: front.pool.ready and child_id(front) != old.pid)
    assert not old.is_running()
    await front.check_idle()
    return child_of(front)


async def test_a_replica_in_a_process_answers_and_ends_with_its_front(open_front):
    front = await open_front(in_process=True)
    child = child_of(front)
    assert child.ppid() == os.getpid()
    assert os.getpgid(child.pid) == child.pid
    token = front.proxy._launch._door.token
    assert token not in " ".join(child.cmdline())
    assert token not in child.environ().values()
    texts = [f"{n:03d}" for n in range(50)]
    assert await asyncio.gather(*(front.answer(ask(t, t, 30)) for t in texts)) == [
        text * 10 for text in texts
    ]
    await front.check_idle()
    await front.pool.drain(60)
    assert not child.is_running()


@pytest.mark.parametrize(
    ("model_path", "line"),
    [
        ("refuse:no such file: a.gguf", "no such file: a.gguf"),
        ("break:index out of range", "RuntimeError: index out of range"),
        ("die-while-loading", "the replica was killed by SIGKILL while it was loading"),
    ],
)
async def test_why_a_replica_does_not_start(open_front, model_path, line):
    front = await open_front(model_path, in_process=True, start=False)
    with pytest.raises(StartError) as caught:
        await front.pool.start()
    assert str(caught.value) == line


async def test_a_process_that_never_connects():
    for command, line in [
        ((sys.executable, "-c", "raise SystemExit(3)"), "the replica process exited with code 3"),
        ((sys.executable, "-c", "pass"), "the replica process ended"),
    ]:
        launch = ProcessLaunch(0, EngineConfig(), command=command)
        with pytest.raises(StartError, match=f"^{line}$"):
            await launch.open(Recorder())
        await launch.close()
        await launch.close()
    launch = ProcessLaunch(0, EngineConfig(), command=("/no/such/program",))
    with pytest.raises(StartError, match="No such file"):
        await launch.open(Recorder())
    await launch.close()


async def test_stopping_while_it_loads(open_front):
    before = child_processes()
    for model_path in ("load-for-ever", "block-for-ever"):
        front = await open_front(model_path, in_process=True, start=False)
        starting = asyncio.create_task(front.pool.start())
        await until(lambda front=front: front.progress)
        await front.pool.stop()
        await asyncio.wait({starting})
        assert child_processes() == before


@pytest.mark.parametrize("death", ["kill", "fault"])
async def test_a_replica_that_dies_under_load_is_replaced(open_front, caplog, death):
    front = await open_front(in_process=True)
    child = child_of(front)
    begun = front.pool.generate(ask("begun", "stall", 50))
    text = (await anext(begun)).text
    if death == "kill":
        child.kill()
        killer = None
    else:
        killer = asyncio.create_task(front.answer(ask("killer", "raise", 1)))
    async for delta in begun:
        text += delta.text
    assert text == "stall" * 10
    if killer is not None:
        with pytest.raises(EngineError) as caught:
            await killer
        assert (caught.value.status, caught.value.code) == (500, "request_quarantined")
    await is_replaced(front, child)
    assert ("SIGKILL" if death == "kill" else "code 70") in caplog.text


async def test_a_signal_from_outside_is_no_requests_fault(open_front, caplog):
    """It counts against the restart limit alone."""
    policy = RestartPolicy(max_restarts=2, first_delay_s=0.01)
    front = await open_front(in_process=True, policy=policy)
    with pytest.raises(Unavailable):
        await front.answer(ask("r", "die", 1))
    assert "SIGKILL" in str(await asyncio.wait_for(asyncio.shield(front.pool.failed), 60))
    assert not front.pool.alive
    assert not len(front.pool._requests._quarantine)


async def test_a_signal_to_the_replica_alone(open_front, caplog):
    front = await open_front(in_process=True)
    child = child_of(front)
    child.send_signal(signal.SIGINT)
    await front.check_idle()
    assert child.is_running()
    child.send_signal(signal.SIGTERM)
    await is_replaced(front, child)
    assert "ended unasked" in caplog.text


@pytest.mark.usefixtures("quick_beats")
async def test_a_replica_that_is_frozen_is_found_and_replaced(open_front, caplog):
    limits = Limits()
    front = await open_front(in_process=True, limits=[limits])
    child = child_of(front)
    begun = front.pool.generate(ask("begun", "stall", 50))
    text = (await anext(begun)).text
    child.suspend()
    limits.busy_s = 5
    await until(lambda: not front.pool.ready)
    limits.busy_s = math.inf
    async for delta in begun:
        text += delta.text
    assert text == "stall" * 10
    await is_replaced(front, child)
    assert "no sign of life" in caplog.text


async def test_a_replica_that_does_not_stop_is_killed(open_front, monkeypatch):
    monkeypatch.setattr(proxy_module, "_STOP_GRACE_S", 0.1)
    front = await open_front(in_process=True)
    child = child_of(front)
    reading = asyncio.create_task(front.answer(ask("r", "spin", 1)))
    await until(lambda: len(front.proxy.requests))
    await front.pool.stop()
    assert not child.is_running()
    with pytest.raises(Unavailable):
        await reading


PARENT = """
import asyncio, functools, sys
from jaxsgl.actors.text_actor import TextActor
from jaxsgl.config import EngineConfig
from jaxsgl.replicas.launch import ProcessLaunch
from jaxsgl.replicas.pool import ReplicaPool
from jaxsgl.replicas.seat import ReplicaSpec
from tests.actors.fake_tokenizer import ByteTokenizer
from tests.replicas.conftest import FAKE_CHILD, ask

async def main(prompt):
    text, config = TextActor(ByteTokenizer()), EngineConfig(model_path="MODEL")
    await text.start()
    launcher = functools.partial(ProcessLaunch, config=config, command=FAKE_CHILD)
    pool = ReplicaPool(
        config,
        text,
        [ReplicaSpec(launcher)],
        on_progress=lambda p: print("loading", p.done, flush=True),
    )
    await pool.start()
    print("ready", flush=True)
    async for delta in pool.generate(ask("r", prompt, 1)):
        pass
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("model_path", "prompt", "last_line"),
    [
        ("", "idle", "ready"),
        ("", "spin", "spinning"),
        ("", "hold", "holding"),
        ("block-for-ever", "", "loading 0"),
    ],
    ids=["idle", "busy", "stuck", "loading"],
)
async def test_when_the_front_is_killed_the_replica_goes_too(model_path, prompt, last_line):
    """Also if its event loop or even all its threads are stuck."""
    front = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT.replace("MODEL", model_path), prompt),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert front.stdout is not None
    while (line := await front.stdout.readline()).strip() != last_line.encode():
        assert line, "the front has ended"
    (child,) = psutil.Process(front.pid).children()
    front.kill()
    await front.wait()
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [child], timeout=60)
    assert gone


async def test_a_thread_that_loads_does_not_keep_the_process():
    config = EngineConfig(model_path="block-for-ever")
    launch = ProcessLaunch(0, config, command=FAKE_CHILD, environment=CHILD_ENVIRONMENT)
    heard = Recorder()
    await launch.open(heard)
    await heard.until(1)
    assert launch.process_id is not None
    os.kill(launch.process_id, signal.SIGTERM)
    assert await asyncio.wait_for(launch.wait_for_end(), 60) == Ending(None)
    await launch.close()


@pytest.mark.parametrize("prompt", [b"idle", b"spin"])
async def test_when_the_link_is_cut_the_replica_goes_though_its_parent_lives(prompt, monkeypatch):
    """What is left where no kernel tells children of their parent's death."""
    monkeypatch.setattr(launch_module, "_EXIT_GRACE_S", 60.0)  # for a machine with much to do
    launch = ProcessLaunch(0, EngineConfig(), command=FAKE_CHILD, environment=CHILD_ENVIRONMENT)
    heard = Recorder()
    link = await launch.open(heard)
    await heard.until(3)
    link.send(Admit("r", list(prompt), SamplingParams(max_tokens=60)))
    if prompt == b"idle":
        await until(lambda: any(isinstance(said, StepOutputs) for said in heard.messages))
    link.close()
    how = f"exited with code {Outcome.ORPHANED}"
    assert await asyncio.wait_for(launch.wait_for_end(), 60) == Ending(how)
    await launch.close()


@pytest.mark.parametrize("num_turns", range(12))
async def test_a_start_cancelled_in_its_first_turns_leaves_nothing(open_front, num_turns):
    before = child_processes()
    front = await open_front(in_process=True, start=False)
    starting = asyncio.create_task(front.pool.start())
    for _ in range(num_turns):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait({starting})
    assert child_processes() == before


@pytest.mark.parametrize(
    "reached",
    [
        lambda front: front.proxy._launch._process,
        lambda front: front.proxy._launch._door.opened.done(),
        lambda front: front.progress,
        lambda front: len(front.progress) == 2,
        lambda front: front.pool.ready,
    ],
    ids=["spawned", "connected", "loading", "loaded", "ready"],
)
async def test_a_start_cancelled_at_any_stage_leaves_nothing(open_front, reached):
    before = child_processes()
    front = await open_front(in_process=True, start=False)
    starting = asyncio.create_task(front.pool.start())
    await until(lambda: front.pool._seats.of(0).proxy and front.proxy._launch._door)
    await until(lambda: reached(front))
    starting.cancel()
    await asyncio.wait({starting})
    await front.pool.stop()
    assert child_processes() == before


def test_a_front_does_not_load_jax():
    code = textwrap.dedent("""
        import sys
        import jaxsgl.actors.text_actor, jaxsgl.replicas.child, jaxsgl.replicas.pool
        sys.exit("jax" in sys.modules or "transformers" in sys.modules)
    """)
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
