"""Queue, deadlines, namespaces and flushing as HTTP sees them: everything is real but the
runner."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from jaxsgl.actors.text_actor import TextActor
from jaxsgl.config import EngineConfig, ServerConfig
from jaxsgl.metrics import Metrics
from jaxsgl.replicas.launch import LocalLaunch
from jaxsgl.replicas.pool import ReplicaPool
from jaxsgl.replicas.seat import ReplicaSpec
from jaxsgl.scheduling.scheduler import Scheduler
from server.app import create_app
from server.site import bind_socket, start_site
from tests.actors.scheduler_rig import HeldRunner
from tests.actors.waiting import until
from tests.fake_runner import FakeRunner, expected_embedding, expected_tokens, make_limits
from tests.offline.local_replica import FakeFactory, LetterTokenizer

NUM_SLOTS = 2
PROMPT = list(range(1, 18))
"""Four whole pages and the token that is always computed."""


@dataclass
class Served:
    url: str
    session: aiohttp.ClientSession
    pool: ReplicaPool
    scheduler: Scheduler

    @property
    def num_open(self) -> int:
        """Requests that the front has admitted and that have not ended."""
        return self.pool._seats.of(0).num_open

    async def post(self, path: str, body: Any, key: str = "") -> tuple[int, Any, Any]:
        """Status, decoded body, headers."""
        headers = {"X-Api-Key": key} if key else {}
        async with self.session.post(self.url + path, json=body, headers=headers) as response:
            return response.status, await response.json(), response.headers

    async def complete(
        self, prompt: list[int], key: str = "", **fields: Any
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        body = {"prompt": prompt, "max_tokens": 8, "ignore_eos": True, "seed": 0, **fields}
        return await self.post("/v1/completions", body, key)

    async def cached_tokens(self, prompt: list[int], **fields: Any) -> int:
        status, answer, _ = await self.complete(prompt, **fields)
        assert status == 200
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


@asynccontextmanager
async def serve(
    runner: FakeRunner, server_config: ServerConfig | None = None, **config: Any
) -> AsyncGenerator[Served, None]:
    """Ends with nothing left: no page, slot, lock or task."""
    engine_config, factory = EngineConfig(**config), FakeFactory(runner)
    text = TextActor(LetterTokenizer())
    await text.start()
    pool = ReplicaPool(
        engine_config,
        text,
        [ReplicaSpec(lambda epoch: LocalLaunch(epoch, engine_config, factory=factory))],
    )
    await pool.start()
    await until(lambda: pool.stats().slots_total)  # the first report
    sock = bind_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    app = create_app(pool, server_config or ServerConfig(), Metrics())
    site = await start_site(app, sock)
    assert factory.scheduler is not None
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Served(url, session, pool, factory.scheduler)
        if isinstance(runner, HeldRunner):
            runner.let_all_end()
        await until(lambda: factory.scheduler is not None and factory.scheduler.idle)
    factory.scheduler.check()
    stats = factory.scheduler.stats()
    assert stats.locks == 0 and stats.slots_free == stats.slots_total
    await site.cleanup()
    await pool.stop()
    await text.stop(5)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


type Open = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve(FakeRunner()) as served:
        yield served


@pytest.fixture
async def held() -> AsyncIterator[tuple[HeldRunner, Served]]:
    """Two requests run and three may wait; steps last until the test permits their end."""
    async with AsyncExitStack() as stack:
        runner = HeldRunner(make_limits(num_slots=NUM_SLOTS))
        served = await stack.enter_async_context(serve(runner, max_queued_requests=3))
        yield runner, served


async def test_ids_do_not_cross_keys() -> None:
    """Both holders of keys have a request of the same name; each can end his own alone."""
    config = ServerConfig(api_key=("one", "two"), admin_api_key=("admin",))
    without_admin = dataclasses.replace(config, admin_api_key=())

    async def generate(served: Served, key: str) -> tuple[int, Any]:
        sampling = {"max_new_tokens": 100, "ignore_eos": True, "sampling_seed": 0}
        body = {"input_ids": PROMPT, "rid": "r", "sampling_params": sampling}
        status, answer, _ = await served.post("/generate", body, key)
        return status, answer["meta_info"] if status == 200 else answer["error"]

    async def ended_by(
        config: ServerConfig, key: str, body: dict[str, Any]
    ) -> tuple[int, list[str]]:
        """Status of the abort, and how the requests of both end."""
        runner = HeldRunner(make_limits(num_slots=NUM_SLOTS))
        async with serve(runner, config) as served:
            asking = [asyncio.create_task(generate(served, key)) for key in ("one", "two")]
            await until(lambda: served.num_open == 2)
            status, error = await generate(served, "one")
            assert (status, error["param"]) == (400, "rid")
            assert error["message"] == "request id 'r' is in use"
            status, *_ = await served.post("/abort_request", body, key)
            runner.let_all_end()
            ends = [await each for each in asking]
            assert [(code, info["id"]) for code, info in ends] == [(200, "r"), (200, "r")]
            return status, [info["finish_reason"]["type"] for _, info in ends]

    both, neither = ["abort", "abort"], ["length", "length"]
    for body in ({"rid": "r"}, {"abort_all": True}):
        assert await ended_by(without_admin, "one", body) == (200, ["abort", "length"])
        assert await ended_by(without_admin, "two", body) == (200, ["length", "abort"])
        assert await ended_by(config, "admin", body) == (200, both)
        assert await ended_by(config, "two", body) == (403, neither)
    assert await ended_by(without_admin, "one", {"rid": "x"}) == (200, neither)


async def test_a_prompt_is_held_until_its_name_is_aborted(served: Served) -> None:
    body = {"input_ids": PROMPT, "rid": "kept", "sampling_params": {"max_new_tokens": 0}}
    status, *_ = await served.post("/generate", {**body, "hold_s": 60})
    assert (status, served.scheduler.holds) == (200, ["kept"])
    for n in range(20):  # others, who want every page
        await served.complete([2 + n] * 40)
    assert await served.cached_tokens(PROMPT) == 16
    await served.post("/abort_request", {"rid": "kept"})
    await until(lambda: not served.scheduler.holds)
    for n in range(20):
        await served.complete([22 + n] * 40)
    assert await served.cached_tokens(PROMPT) == 0


async def test_beyond_the_queue_clients_are_told_to_come_back(held) -> None:
    runner, served = held
    num_admitted = NUM_SLOTS + 3
    asking = [
        asyncio.create_task(served.complete([n + 1] * 4, stream=False)) for n in range(num_admitted)
    ]
    await until(lambda: served.num_open == num_admitted)
    for stream in (False, True):
        status, body, headers = await served.complete(PROMPT, stream=stream)
        assert status == 429
        assert int(headers["Retry-After"]) >= 1
        assert body == {
            "error": {
                "message": "too many requests are waiting",
                "type": "rate_limit_error",
                "param": None,
                "code": None,
            }
        }
    assert served.num_open == num_admitted
    runner.let_all_end()
    assert [(await each)[0] for each in asking] == [200] * num_admitted
    assert (await served.complete(PROMPT))[0] == 200


async def test_embeddings_share_prefixes_with_everything_else(served) -> None:
    await served.complete(PROMPT)
    for num_cached in (16, 16):
        status, answer, _ = await served.post("/v1/embeddings", {"input": [PROMPT, [5]]})
        assert status == 200
        for item, prompt in zip(answer["data"], (PROMPT, [5]), strict=True):
            assert item["embedding"] == pytest.approx(expected_embedding(prompt), abs=1e-6)
        usage = answer["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == num_cached
        assert usage["total_tokens"] == 18


async def test_a_key_that_fills_the_queue_holds_up_no_other() -> None:
    keys = ServerConfig(api_key=("heavy", "light"))
    runner = HeldRunner(make_limits(num_slots=NUM_SLOTS))
    async with serve(runner, keys, max_queued_requests=18) as served:
        ends: list[str] = []

        async def ask(key: str, n: int) -> int:
            status, _, _ = await served.complete([n + 1] * 4, key)
            ends.append(key)
            return status

        heavy = [asyncio.create_task(ask("heavy", n)) for n in range(20)]
        await until(lambda: served.num_open == 20)
        assert (await served.complete(PROMPT, "heavy"))[0] == 429
        light = asyncio.create_task(ask("light", 30))
        await until(lambda: served.num_open == 21)
        runner.let_all_end()
        assert await light == 200
        assert [await each for each in heavy] == [200] * 20
        assert ends.index("light") <= 2 * NUM_SLOTS + 1
        async with served.session.get(
            served.url + "/metrics", headers={"Authorization": "Bearer light"}
        ) as response:
            lines = (await response.text()).splitlines()
        assert 'jaxsgl_key_requests_total{key="1"} 20.0' in lines
        assert 'jaxsgl_key_generation_tokens_total{key="2"} 8.0' in lines
        assert 'jaxsgl_key_time_to_first_token_seconds_count{key="2"} 1.0' in lines


@pytest.mark.parametrize("timeout_s", [0, -1.5])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_that_is_past_is_504(
    served: Served, timeout_s: float, stream: bool
) -> None:
    status, body, _ = await served.complete(PROMPT, timeout_s=timeout_s, stream=stream)
    assert status == 504
    assert body == {
        "error": {
            "message": "the request's deadline has passed",
            "type": "server_error",
            "param": None,
            "code": "deadline_exceeded",
        }
    }
    assert served.scheduler.stats().steps == 0
    assert (await served.complete(PROMPT, timeout_s=1000))[0] == 200


async def test_a_deadline_that_passes_while_a_request_waits_is_504(held) -> None:
    runner, served = held
    running = [asyncio.create_task(served.complete([n + 1] * 4)) for n in range(NUM_SLOTS)]
    # Two steps are on the device, and nothing is looked at until one of them ends.
    await until(lambda: len(runner.plans) == 2)
    late = asyncio.create_task(served.complete(PROMPT, timeout_s=1e-6))
    await until(lambda: served.num_open == NUM_SLOTS + 1)
    runner.let_all_end()
    status, body, _ = await late
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    assert [(await each)[0] for each in running] == [200] * NUM_SLOTS


async def test_equal_prompts_meet_in_the_cache_only_under_one_salt(served: Served) -> None:
    assert await served.cached_tokens(PROMPT) == 0
    assert await served.cached_tokens(PROMPT) == 16
    assert await served.cached_tokens(PROMPT, cache_salt="a") == 0
    assert await served.cached_tokens(PROMPT, cache_salt="b") == 0
    assert await served.cached_tokens(PROMPT, cache_salt="a") == 16
    salted = await served.complete(PROMPT, cache_salts="c")
    assert salted[0] == 400  # an unknown field is refused, and so is not mistaken for a salt


async def test_flushing_an_idle_server_empties_the_cache(served: Served) -> None:
    for salt in ("", "a"):
        assert await served.cached_tokens(PROMPT, cache_salt=salt) == 0
    status, body, _ = await served.post("/flush_cache", None)
    assert (status, body) == (200, {"status": "flushed"})
    stats = served.scheduler.stats()
    assert stats.pages_free == stats.pages_total
    for salt in ("", "a"):
        assert await served.cached_tokens(PROMPT, cache_salt=salt) == 0


async def test_a_busy_server_is_not_flushed(held) -> None:
    runner, served = held
    asking = [asyncio.create_task(served.complete([n + 1] * 17)) for n in range(NUM_SLOTS + 1)]
    await until(lambda: served.num_open == NUM_SLOTS + 1)
    flushing = asyncio.create_task(served.post("/flush_cache", None))
    await until(lambda: len(served.pool._seats.of(0).proxy._asks) == 1)
    runner.permits.release()
    status, body, _ = await flushing
    assert status == 400
    assert body["error"] == {
        "message": "the cache can be flushed only while no request runs or waits",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    runner.let_all_end()
    answers = [await each for each in asking]
    assert [status for status, _, _ in answers] == [200] * 3
    assert (await served.post("/flush_cache", None))[0] == 200


async def test_flushing_right_behind_an_answer_leaves_nothing_in_the_cache(served: Served) -> None:
    """Whatever is still on the device when an answer is complete, is gone as well."""
    end = expected_tokens(PROMPT, 3, ignore_eos=True)[-1]
    for _ in range(20):
        status, _, _ = await served.complete(PROMPT, max_tokens=60, stop_token_ids=[end])
        assert status == 200
        assert (await served.post("/flush_cache", None))[0] == 200
        stats = served.scheduler.stats()
        assert stats.pages_free == stats.pages_total
