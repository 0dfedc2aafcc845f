"""One replica: a model on its devices, and the actors that serve it. The only place that builds
them.

Imports jax, so it lives in replica processes and in programs that use the engine without a server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxsgl.actors.faulty_runner import FaultyRunner, parse_faults
from jaxsgl.actors.grammar_actor import GrammarActor, GrammarSettings
from jaxsgl.actors.messages import (
    Progress,
    Ready,
    Speed,
    StartProfile,
    StopProfile,
    ToFront,
    ToReplica,
)
from jaxsgl.actors.profile_desk import ProfileDesk
from jaxsgl.actors.runner_actor import RunnerActor
from jaxsgl.actors.scheduler_actor import SchedulerActor
from jaxsgl.actors.step_watchdog import StepWatchdog
from jaxsgl.actors.timeline import Timeline, chrome_trace, write_chrome_trace
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.tables_folder import TablesFolder
from jaxsgl.grammar.vocabulary import Vocabulary as TokenTrie
from jaxsgl.heap import settle, unsettle
from jaxsgl.interface import EngineStats, ModelInfo
from jaxsgl.loading.model_files import open_model
from jaxsgl.runner.build import build_runner
from jaxsgl.runner.runner import ModelRunner
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from jaxsgl.world.leader_runner import LeaderRunner
from jaxsgl.world.world import World

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
"""What a step in progress gets to end before its replica is given up."""


class Replica:
    """A scheduler and a runner, linked: what one knows of the KV pages is worth nothing without the
    other.

    `await Replica.start(config, send)` loads and compiles; `deliver` takes messages from the front;
    what the replica has to say goes to `send`, which must not block.
    """

    def __init__(
        self,
        config: EngineConfig,
        scheduler: SchedulerActor,
        runner: RunnerActor,
        grammars: GrammarActor,
        model_runner: ModelRunner,
        timeline: Timeline,
        watchdog: StepWatchdog,
        profiles: ProfileDesk,
        world: World | None = None,
    ) -> None:
        self._config = config
        self._world = world
        self._profiles = profiles
        self._watchdog = watchdog
        self._scheduler = scheduler
        self._runner = runner
        self._grammars = grammars
        self._model_runner = model_runner
        self._timeline = timeline
        self._thresholds = settle()

    @classmethod
    async def start(cls, config: EngineConfig, send: Callable[[ToFront], None]) -> Replica:
        """Load the model, compile every program, and send Ready.

        Raises CheckpointError, TokenizerError, ConfigError or WorldLost, one line each, if that
        cannot be done.
        """
        check_quotas(config)
        check_grammar_limits(config)
        max_itl_s = _max_itl_s(config)
        faults = parse_faults(config.inject_fault) if config.inject_fault else []
        loop = asyncio.get_running_loop()

        def progress(stage: str, done: int, total: int) -> None:
            loop.call_soon_threadsafe(send, Progress(stage, done, total))

        world = World(config) if config.nnodes > 1 else None
        building = asyncio.to_thread(_build, config, world, progress)
        built = await (building if world is None else world.alive(building))
        model_runner, vocabulary, model = built
        limits = model_runner.limits
        timeline = Timeline()
        watchdog = StepWatchdog(config.step_timeout_s)
        leading = model_runner if world is None else LeaderRunner(model_runner, world.members)
        runner = RunnerActor(FaultyRunner(leading, faults), timeline, watchdog)
        cache = KVCacheManager(
            limits.num_pages,
            limits.page_size,
            radix=config.radix_cache,
            eviction=config.radix_eviction_policy,
            default_quota=_quota_pages(config, limits.num_pages - 1),
        )
        settings = SchedulingSettings(
            max_len=model.context_len,
            policy=config.schedule_policy,
            mixed_chunks=config.mixed_chunk and config.chunked_prefill,
            chunked_prefill=config.chunked_prefill,
            share_prefixes=config.radix_cache,
            preemption_threshold=config.priority_preemption_threshold,
            max_itl_s=max_itl_s,
            fair=config.fair_queue,
            tenant_quota=config.key_quota,
            seed=config.random_seed,
        )
        grammars = GrammarActor(
            lambda: _token_trie(vocabulary, limits.vocab_size), grammar_settings(config)
        )
        scheduler = SchedulerActor(
            Scheduler(limits, cache, vocabulary, settings),
            runner,
            send,
            grammars=grammars,
            overlap=config.overlap,
            # Each may be aborted, and the fair queue lets in as many again at worst.
            capacity=4 * (limits.max_rows + config.max_queued_requests) + 64,
            timeline=timeline,
        )
        profiles = ProfileDesk(send, start=_start_trace, stop=jax.profiler.stop_trace)
        watchdog.start()
        await scheduler.start()
        replica = cls(
            config, scheduler, runner, grammars, model_runner, timeline, watchdog, profiles, world
        )
        notes = model_runner.layout.notes
        page_size = limits.page_size if config.radix_cache else 0
        send(Ready(model, model.context_len - 1, notes, page_size))
        return replica

    def deliver(self, message: ToReplica) -> None:
        if isinstance(message, StartProfile | StopProfile):
            self._profiles.take(message)
        else:
            self._scheduler.deliver(message)

    def stats(self) -> EngineStats:
        return self._scheduler.stats()

    def speed(self) -> Speed:
        return self._scheduler.speed()

    def step_trace(self) -> dict[str, Any]:
        """The last steps as a Chrome trace."""
        return chrome_trace(self._timeline.spans())

    async def run(self) -> None:
        """Serve until told to stop; then nothing of the model is left on the devices. Raises what
        the scheduler died of, and WorldLost with everything left as it was: a step may be waiting
        for ever for a process that is gone."""
        died = asyncio.shield(self._scheduler.died)
        try:
            cause = await (died if self._world is None else self._world.alive(died))
        finally:
            if self._world is None or not self._world.is_lost:
                await self._end()
        if cause is not None:
            raise cause

    async def _end(self) -> None:
        await self._profiles.stop()
        await self._scheduler.stop(STOP_TIMEOUT_S)
        await self._grammars.stop()
        await self._runner.stop()
        if self._world is not None:
            self._world.stop()
        self._watchdog.stop()
        self._model_runner.close()
        unsettle(self._thresholds)
        self._write_trace()

    def _write_trace(self) -> None:
        path = self._config.step_trace
        if path is not None:
            try:
                write_chrome_trace(path, self._timeline.spans())
            except OSError as error:
                log.error("cannot write the step trace: %s", error)


def _start_trace(folder: str) -> None:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of every thread would drown the devices' work
    jax.profiler.start_trace(folder, profiler_options=options)


def check_quotas(config: EngineConfig) -> None:
    """Raise ConfigError for a share that is none, or of which nothing would come."""
    shares = {"--cache-quota": config.cache_quota, "--key-quota": config.key_quota}
    for flag, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise ConfigError(f"{flag} {share:g} is not a share from 0 to 1")
    if config.key_quota is not None and not config.fair_queue:
        raise ConfigError("--key-quota needs the fair queue: leave out --disable-fair-queue")


def _quota_pages(config: EngineConfig, num_pages: int) -> int | None:
    """Pages that each cache namespace may keep, of a pool of `num_pages`."""
    return None if config.cache_quota is None else int(config.cache_quota * num_pages)


def _max_itl_s(config: EngineConfig) -> float | None:
    """Raise ConfigError where prompts cannot be cut to keep the promise."""
    if config.max_itl_ms is None:
        return None
    if not config.max_itl_ms > 0:
        raise ConfigError("--max-itl-ms must be above 0")
    if not (config.mixed_chunk and config.chunked_prefill):
        raise ConfigError("--max-itl-ms needs --enable-chunked-prefill and --enable-mixed-chunk")
    return config.max_itl_ms / 1e3


def check_grammar_limits(config: EngineConfig) -> None:
    """Raise ConfigError for a limit under which no grammar could be served."""
    if not config.grammar_compile_timeout_s > 0:
        raise ConfigError("--grammar-compile-timeout-s must be above 0")
    if config.grammar_cache_mb < 1 or config.grammar_mask_cache_mb < 1:
        raise ConfigError("--grammar-cache-mb and --grammar-mask-cache-mb must be at least 1")


def grammar_settings(config: EngineConfig) -> GrammarSettings:
    """What the configuration says of grammars."""
    max_bytes = config.grammar_cache_mb << 20
    folder = config.grammar_cache_dir
    return GrammarSettings(
        json_schema_backend="lark" if config.grammar_backend == "lark" else "llguidance",
        compile_timeout_s=config.grammar_compile_timeout_s,
        max_grammar_bytes=max_bytes,
        max_mask_bytes=config.grammar_mask_cache_mb << 20,
        folder=None if folder is None else TablesFolder(Path(folder), max_bytes),
    )


def _token_trie(vocabulary: Vocabulary, vocab_size: int) -> TokenTrie:
    if not vocabulary.token_bytes:
        raise GrammarError("grammars need a tokenizer, and none is loaded")
    token_bytes = vocabulary.token_bytes[:vocab_size]
    return TokenTrie(token_bytes, vocabulary.eos_token_ids, vocab_size)


def _build(
    config: EngineConfig, world: World | None, progress: Callable[[str, int, int], None]
) -> tuple[ModelRunner, Vocabulary, ModelInfo]:
    """Everything that takes long, on a thread of its own."""
    checkpoint, tokenizer = open_model(config)
    if world is not None:
        world.gather()
    runner = build_runner(config, checkpoint, progress)
    limits, mesh = runner.limits, runner.layout.mesh
    context_len = min(
        limits.max_context_len,
        (limits.num_pages - 1) * limits.page_size,
        config.context_length or checkpoint.config.context_len,
    )
    model = ModelInfo(
        name=config.served_model_name or checkpoint.config.name,
        architecture=checkpoint.config.architecture,
        vocab_size=checkpoint.config.vocab_size,
        context_len=context_len,
        eos_token_ids=tokenizer.eos_token_ids,
        embedding_len=checkpoint.config.hidden_size,
        has_chat_template=tokenizer.has_chat_template,
        num_devices=mesh.size,
        mesh=",".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
        platform=mesh.devices.flat[0].platform,
        attention_backend=runner.backend,
        tool_format=tokenizer.tool_format,
    )
    control_texts = {id_: text.encode() for id_, text in tokenizer.special_token_texts.items()}
    vocabulary = Vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids, control_texts)
    return runner, vocabulary, model
