"""A replica with the real actors around a fake runner, and a tokenizer for its 61 tokens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import psutil

from jaxsgl.actors.grammar_actor import GrammarActor
from jaxsgl.actors.messages import Progress, Ready, Speed, ToFront, ToReplica
from jaxsgl.actors.runner_actor import RunnerActor
from jaxsgl.actors.scheduler_actor import SchedulerActor
from jaxsgl.actors.timeline import Timeline, chrome_trace
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.grammar.vocabulary import Vocabulary as TokenTrie
from jaxsgl.interface import EngineStats, ModelInfo
from jaxsgl.offline.offline_engine import OfflineEngine
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from tests.fake_runner import EOS_ID, HIDDEN_LEN, VOCAB_SIZE, FakeRunner

TOKEN_BYTES = [b""] + [bytes([64 + i]) for i in range(1, VOCAB_SIZE)]


class LetterTokenizer:
    """A token is a character; token 1 is `A`."""

    vocab_size = VOCAB_SIZE
    token_bytes = TOKEN_BYTES

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) - 64 for letter in text]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return "".join(chr(64 + token_id) for token_id in ids)

    def encode_chat(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool = True, **options: Any
    ) -> list[int]:
        return self.encode("".join(message["content"] for message in messages))


class FakeLocalReplica:
    """A `local_engine.LocalReplica`."""

    def __init__(
        self,
        actor: SchedulerActor,
        runner: RunnerActor,
        grammars: GrammarActor,
        timeline: Timeline,
    ) -> None:
        self._actor = actor
        self._grammars = grammars
        self._runner = runner
        self._timeline = timeline

    def deliver(self, message: ToReplica) -> None:
        self._actor.deliver(message)

    def stats(self) -> EngineStats:
        return self._actor.stats()

    def speed(self) -> Speed:
        return self._actor.speed()

    def step_trace(self) -> dict[str, Any]:
        return chrome_trace(self._timeline.spans())

    async def run(self) -> None:
        try:
            await asyncio.shield(self._actor.died)
        finally:
            await self._actor.stop(5)
            await self._grammars.stop()
            await self._runner.stop()


class FakeFactory:
    """Builds replicas around `runner`. The model path "refuse" is refused."""

    def __init__(self, runner: FakeRunner | None = None) -> None:
        self.runner = runner or FakeRunner()
        self.scheduler: Scheduler | None = None

    async def __call__(
        self, config: EngineConfig, send: Callable[[ToFront], None]
    ) -> FakeLocalReplica:
        send(Progress("loading", 1, 1))
        if config.model_path == "refuse":
            raise ConfigError("no such model")
        limits, timeline = self.runner.limits, Timeline()
        settings = SchedulingSettings(max_len=limits.max_context_len)
        cache = KVCacheManager(limits.num_pages, limits.page_size)
        vocabulary = Vocabulary(TOKEN_BYTES, (EOS_ID,))
        self.scheduler = Scheduler(limits, cache, vocabulary, settings)
        runner = RunnerActor(self.runner, timeline)
        grammars = GrammarActor(lambda: TokenTrie(TOKEN_BYTES, (EOS_ID,), VOCAB_SIZE))
        actor = SchedulerActor(
            self.scheduler,
            runner,
            send,
            grammars=grammars,
            overlap=config.overlap,
            capacity=limits.max_rows + config.max_queued_requests,
            timeline=timeline,
        )
        await actor.start()
        model = ModelInfo(
            name="fake",
            architecture="fake",
            vocab_size=VOCAB_SIZE,
            context_len=limits.max_context_len,
            eos_token_ids=(EOS_ID,),
            embedding_len=HIDDEN_LEN,
            has_chat_template=True,
            num_devices=1,
            mesh=config.mesh or "tp=1",
            platform="cpu",
            attention_backend="xla",
        )
        send(Ready(model, limits.max_context_len - 1))
        return FakeLocalReplica(actor, runner, grammars, timeline)


def open_engine(runner: FakeRunner | None = None, **settings: Any) -> OfflineEngine:
    return OfflineEngine(EngineConfig(**settings), LetterTokenizer(), FakeFactory(runner))


class Leftovers:
    """Threads and processes that were not there when this was made, and do not end by themselves
    in a while."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._processes = set(psutil.Process().children(recursive=True))

    def __call__(self) -> list[object]:
        threads = set(threading.enumerate()) - self._threads
        for thread in threads:
            thread.join(60)
        threads = {thread for thread in threads if thread.is_alive()}
        processes = set(psutil.Process().children(recursive=True)) - self._processes
        return [*threads, *processes]
