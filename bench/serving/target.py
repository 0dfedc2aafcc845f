"""One server under test: load, counters and devices together."""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import aiohttp

from bench.serving.arrivals import arrivals
from bench.serving.backends import BACKENDS, Talk
from bench.serving.client import Client, Clock
from bench.serving.datasets import Conversation, Turn, make_conversations
from bench.serving.driver import Load, LoadShape, Send
from bench.serving.nvml import Nvml
from bench.serving.progress import Progress
from bench.serving.records import Record
from bench.serving.runs import Run
from bench.serving.server_watch import SCRAPE_TIMEOUT_S, ServerWatch, growth

SAMPLE_PERIOD_S = 1.0
PROFILE_TIMEOUT_S = 120.0
WARM_UP_SEED = "warm-up"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""A server elsewhere does not use the devices of this machine."""


class Target:
    """A server, and how to talk to it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, args: argparse.Namespace) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._args = args
        self._backend = BACKENDS[args.backend]
        self._client = Client(session, url, self._backend, args.timeout)
        self._model: str = args.model or ""

    async def prepare(self) -> str | None:
        """Ask for the model's name and send the warm-up requests, whose prompts are others than
        the measured ones. The kind of the first failure, or None."""
        self._model = self._model or await self._first_model()
        if not self._args.warmup:
            return None
        args = argparse.Namespace(**{**vars(self._args), "num_prompts": self._args.warmup})
        conversations = make_conversations(args, WARM_UP_SEED, chat=self._backend.chat)
        shape = LoadShape(None, self._args.max_concurrency or 1, None, self._args.timeout)
        clock = Clock()
        load = Load(conversations, lambda: self._talk(clock), shape, clock)
        await load.run()
        return next((record.error for record in load.records if record.error is not None), None)

    async def measure(
        self, conversations: Sequence[Conversation], progress: Progress, *, seed: int
    ) -> Run:
        """Run the load and watch the server do it. `seed` decides the moments of an open loop."""
        args = self._args
        await asyncio.sleep(args.settle)  # so that the first look has the warm-up in it
        clock = Clock()
        nvml = Nvml.load() if urlsplit(self._url).hostname in LOCAL_HOSTS else None
        watch = ServerWatch(self._session, self._url, clock, nvml)
        load = Load(conversations, lambda: self._talk(clock), load_shape(args, seed), clock)
        async with self._profiled():
            await watch.look()
            clock.restart()
            looking = asyncio.create_task(watch.keep_looking(SAMPLE_PERIOD_S))
            with progress.of(load, clock):
                await load.run()
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
        await asyncio.sleep(args.settle)
        await watch.look()
        if nvml is not None:
            nvml.close()
        return Run(
            records=load.records,
            samples=watch.samples,
            counters=growth(watch.samples),
            start_s=clock.start_s,
            sending_s=load.sending_s,
            elapsed_s=max((record.end_s or 0.0 for record in load.records), default=0.0),
            num_open_at_end=load.num_open_at_end,
            interrupted=load.interrupted,
        )

    def _talk(self, clock: Clock) -> Send:
        talk = Talk(self._backend)

        async def send(record: Record, turn: Turn) -> None:
            talk.ask(turn.prompt)
            body = talk.body(self._model, turn, self._args.extra_body)
            talk.answer(await self._client.send(body, record, clock))

        return send

    async def _first_model(self) -> str:
        """The first that the server lists; "default" if it lists none."""
        timeout = aiohttp.ClientTimeout(total=SCRAPE_TIMEOUT_S)
        try:
            async with self._session.get(f"{self._url}/v1/models", timeout=timeout) as response:
                return str((await response.json())["data"][0]["id"])
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, LookupError, TypeError):
            return "default"

    @asynccontextmanager
    async def _profiled(self) -> AsyncIterator[None]:
        """With --profile, have the server record what its devices do."""
        if self._args.profile:
            await self._post(f"{self._url}/start_profile")
        yield
        if self._args.profile:
            await self._post(f"{self._url}/stop_profile")

    async def _post(self, url: str) -> None:
        """Raises ValueError if the server refuses."""
        timeout = aiohttp.ClientTimeout(total=PROFILE_TIMEOUT_S)
        try:
            async with self._session.post(url, timeout=timeout) as response:
                if response.status != 200:
                    raise ValueError(f"{url}: {response.status}: {(await response.text())[:200]}")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise ValueError(f"{url}: {type(error).__name__}: {error}") from error


def load_shape(args: argparse.Namespace, seed: int) -> LoadShape:
    moments = None
    if args.request_rate is not None:
        moments = arrivals(random.Random(seed), args.request_rate, args.burstiness, args.ramp)
    return LoadShape(moments, args.max_concurrency, args.duration, args.drain, args.think_time)
