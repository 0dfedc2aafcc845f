"""Grammars for the requests of a replica: compiled beside the event loop, once each, and kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from jaxsgl.actors.grammar_workers import GrammarWorkers
from jaxsgl.grammar.budget import ByteLru
from jaxsgl.grammar.check import describe
from jaxsgl.grammar.closing import Closer, Steering
from jaxsgl.grammar.compiled import CompiledGrammar, GrammarMemory
from jaxsgl.grammar.compiler import GrammarCompiler, JsonSchemaBackend
from jaxsgl.grammar.constraint import Constraint
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.free_text import FreeMatcher
from jaxsgl.grammar.matcher import Matcher
from jaxsgl.grammar.restrictions import Restrictions
from jaxsgl.grammar.tables import decode_tables
from jaxsgl.grammar.tables_folder import TablesFolder
from jaxsgl.grammar.token_index import TokenIndex
from jaxsgl.grammar.triggered import Trigger, TriggeredMatcher, blank_tokens
from jaxsgl.grammar.vocabulary import Row, Vocabulary
from jaxsgl.interface import GrammarReport, GrammarSpec, SamplingParams

NUM_THREADS = 2
MAX_TRIGGERS = 16
"""Texts after which grammars begin that are remembered."""
REFUSAL_BYTES = 1 << 10
"""What a remembered refusal costs, about."""
REFUSED_FOR_S = 60.0
"""A grammar that was refused is refused for so long without another try: time ran out for some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarSettings:
    json_schema_backend: JsonSchemaBackend = "llguidance"
    compile_timeout_s: float = 5.0
    max_grammar_bytes: int = 256 << 20
    """Of compiled grammars that are kept."""
    max_mask_bytes: int = 64 << 20
    """Of the masks that grammars share."""
    folder: TablesFolder | None = None
    """Where compiled tables are kept between runs."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    error: GrammarError
    end_s: float
    """On the loop's clock."""


@dataclass(frozen=True, slots=True)
class _Equipment:
    """What is made once, with the first grammar."""

    vocabulary: Vocabulary
    compiler: GrammarCompiler
    closer: Closer
    index: TokenIndex
    blanks: Row


@dataclass(slots=True)
class _Compiling:
    task: asyncio.Task[CompiledGrammar]
    num_waiting: int = 0


class GrammarActor:
    """Construct it in a running loop. Nothing is built, started or read before the first grammar.

    Requests for one grammar share its compilation, which is called off when nobody waits for it any
    more. Grammars that were refused are remembered like those that were not.
    """

    def __init__(
        self, vocabulary: Callable[[], Vocabulary], settings: GrammarSettings | None = None
    ) -> None:
        """`vocabulary` may take its time; it raises GrammarError if there is none."""
        self._make_vocabulary = vocabulary
        self._settings = settings or GrammarSettings()
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar")
        self._workers = GrammarWorkers(self._settings.compile_timeout_s)
        self._kept: ByteLru[bytes, CompiledGrammar | _Refusal] = ByteLru(
            self._settings.max_grammar_bytes
        )
        self._triggers: ByteLru[str, Trigger] = ByteLru(MAX_TRIGGERS)
        self._compiling: dict[bytes, _Compiling] = {}
        self._tasks: set[asyncio.Task[CompiledGrammar]] = set()
        """Also those that were called off and have not ended."""
        self._equipment: asyncio.Future[_Equipment] | None = None

    async def constrain(
        self, sampling: SamplingParams, answer_ids: Sequence[int] = ()
    ) -> Constraint:
        """What holds an answer to its grammar and to the tokens that it may have, with the mask
        ready of the token behind `answer_ids`. Raises GrammarError."""
        grammar = None if sampling.grammar is None else await self.compile(sampling.grammar)
        equipment = await self._equip()
        trigger = None
        if sampling.grammar_after is not None:
            trigger = await self._trigger(sampling.grammar_after, equipment)

        def make() -> Constraint:
            return _constraint(grammar, trigger, sampling, equipment)

        def follow(constraint: Constraint) -> None:
            for taken_len, token_id in enumerate(answer_ids):
                constraint.take(taken_len, token_id)
            constraint.prepare()

        # What takes microseconds is done here and now: requests under a grammar that was seen
        # before begin together if they come together.
        slow = _is_restricted(sampling) or sampling.strict_complete
        constraint = await self._in_thread(make) if slow else make()
        if answer_ids or not constraint.try_prepare():
            await self._in_thread(lambda: follow(constraint))
        if constraint.failed_len == len(answer_ids):
            raise GrammarError(constraint.failure)
        return constraint

    async def _trigger(self, text: str, equipment: _Equipment) -> Trigger:
        trigger = self._triggers.get(text)
        if trigger is None:
            vocabulary, index = equipment.vocabulary, equipment.index
            trigger = await self._in_thread(lambda: Trigger(text.encode(), vocabulary, index))
            self._triggers.put(text, trigger, 1)
        return trigger

    async def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Raises GrammarError, also if it takes longer than it may."""
        key = msgspec.msgpack.encode(spec)
        kept = self._kept.get(key)
        if isinstance(kept, _Refusal):
            if asyncio.get_running_loop().time() < kept.end_s:
                raise GrammarError(kept.error.reason, kept.error.line)
        elif kept is not None:
            self._kept.put(key, kept, kept.num_bytes)  # it may have grown
            return kept
        job = self._compiling.get(key)
        if job is None:
            task = asyncio.create_task(self._compile(key, spec), name="compile grammar")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            job = self._compiling[key] = _Compiling(task)
        job.num_waiting += 1
        try:
            return await asyncio.shield(job.task)
        finally:
            job.num_waiting -= 1
            if not job.num_waiting:
                job.task.cancel()
                if self._compiling.get(key) is job:
                    del self._compiling[key]

    async def check(self, spec: GrammarSpec, prefix: bytes) -> GrammarReport:
        """What there is to say about a grammar. Raises GrammarError."""
        begin_s = time.perf_counter()
        grammar = await self.compile(spec)
        vocabulary = (await self._equip()).vocabulary
        return await self._in_thread(lambda: describe(grammar, vocabulary, prefix, begin_s))

    async def stop(self) -> None:
        """Call off what is being compiled."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._workers.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _compile(self, key: bytes, spec: GrammarSpec) -> CompiledGrammar:
        try:
            grammar = await self._compile_now(spec)
        except GrammarError as error:
            end_s = asyncio.get_running_loop().time() + REFUSED_FOR_S
            self._kept.put(key, _Refusal(error, end_s), REFUSAL_BYTES + len(key))
            raise
        self._kept.put(key, grammar, grammar.num_bytes)
        return grammar

    async def _compile_now(self, spec: GrammarSpec) -> CompiledGrammar:
        compiler = (await self._equip()).compiler
        if not compiler.makes_tables(spec):
            timeout_s = self._settings.compile_timeout_s
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._in_thread(lambda: compiler.compile(spec))
            except TimeoutError:
                # The thread goes on until it meets a limit of its own.
                message = f"compiling the grammar takes more than {timeout_s:g} s"
                raise GrammarError(message) from None
        folder = self._settings.folder
        data = None if folder is None else await self._in_thread(lambda: folder.read(spec))
        if data is None:
            data = await self._workers.compile(spec)
            if folder is not None:
                await self._in_thread(lambda: folder.write(spec, data))
        return await self._in_thread(lambda: compiler.load(decode_tables(data)))

    async def _equip(self) -> _Equipment:
        if self._equipment is None:
            self._equipment = self._in_thread(self._make_equipment)
        return await asyncio.shield(self._equipment)

    def _make_equipment(self) -> _Equipment:
        settings = self._settings
        vocabulary = self._make_vocabulary()
        memory = GrammarMemory(vocabulary, settings.max_mask_bytes)
        backend = settings.json_schema_backend
        compiler = GrammarCompiler(memory, json_schema_backend=backend)
        index, blanks = TokenIndex(vocabulary), blank_tokens(vocabulary)
        return _Equipment(vocabulary, compiler, Closer(vocabulary), index, blanks)

    def _in_thread[T](self, function: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function)


def _matcher(
    grammar: CompiledGrammar | None,
    trigger: Trigger | None,
    sampling: SamplingParams,
    equipment: _Equipment,
) -> Matcher:
    if grammar is None:
        return FreeMatcher(equipment.vocabulary)
    if trigger is None:
        return grammar.matcher()
    return TriggeredMatcher(
        trigger,
        grammar.matcher,
        equipment.vocabulary,
        repeats=sampling.grammar_repeats,
        blanks=equipment.blanks,
    )


def _constraint(
    grammar: CompiledGrammar | None,
    trigger: Trigger | None,
    sampling: SamplingParams,
    equipment: _Equipment,
) -> Constraint:
    return Constraint(
        _matcher(grammar, trigger, sampling, equipment),
        equipment.vocabulary,
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        stop_token_ids=sampling.stop_token_ids,
        steering=_steering(grammar, sampling, equipment),
        restrictions=_restrictions(sampling, equipment),
    )


def _steering(
    grammar: CompiledGrammar | None, sampling: SamplingParams, equipment: _Equipment
) -> Steering | None:
    if not sampling.strict_complete or sampling.max_tokens is None:
        return None
    largest_part = b"" if grammar is None else grammar.largest_part
    return Steering(equipment.closer, equipment.vocabulary, sampling.max_tokens, largest_part)


def _is_restricted(sampling: SamplingParams) -> bool:
    return sampling.allowed_token_ids is not None or bool(sampling.bad_words)


def _restrictions(sampling: SamplingParams, equipment: _Equipment) -> Restrictions | None:
    if not _is_restricted(sampling):
        return None
    return Restrictions(
        equipment.vocabulary,
        equipment.index,
        allowed_token_ids=sampling.allowed_token_ids,
        bad_words=sampling.bad_words,
    )
