"""A replica driven by plain function calls, shaped as those of SGLang's Engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from jaxsgl.actors.text_actor import PromptTokenizer
from jaxsgl.config import EngineConfig
from jaxsgl.interface import (
    MEMORY_PARTS,
    ChatPrompt,
    EngineClient,
    EngineStats,
    GrammarReport,
    GrammarSpec,
    MemoryPart,
    ModelInfo,
    OperationReport,
    ReleaseMemory,
    Reshard,
    ResumeMemory,
    SamplingParams,
    TextPrompt,
    UpdateWeights,
)
from jaxsgl.offline.answering import async_stream_answers, stream_answers, whole_answers
from jaxsgl.offline.background import BackgroundLoop, ShutDown
from jaxsgl.offline.calls import Call, CallOptions, Sampling, make_call
from jaxsgl.offline.local_engine import LocalEngine, LocalFactory
from jaxsgl.offline.settings import rules_setting
from jaxsgl.replicas.start_progress import Bar, StartProgress

_EMBEDDING = SamplingParams(max_tokens=0, temperature=0.0, embedding=True)


class OfflineEngine:
    """Generates text in this process, on a thread of its own.

    Its methods may be called from any thread. Every answer is a dict `{"text", "output_ids",
    "meta_info"}`, where `meta_info` has `id`, `finish_reason` (None until the end, then a dict with
    a `type`), `prompt_tokens`, `completion_tokens`, `cached_tokens`, at the end `weight_version`,
    and with `return_logprob` also `input_token_logprobs` and `output_token_logprobs`, lists of
    (log-probability, token id, None).

    Shut it down, or use it as a context manager, to have its memory back; a program that just ends
    is not held up.
    """

    def __init__(
        self, config: EngineConfig, tokenizer: PromptTokenizer, factory: LocalFactory
    ) -> None:
        """Returns when the engine is ready. Raises StartError, one line, if it cannot be."""
        self._tokenizer = tokenizer
        self._shares_prefixes = config.radix_cache
        self._loop = BackgroundLoop("jaxsgl")
        progress = StartProgress()
        try:
            opening = LocalEngine.open(config, tokenizer, factory, progress.show)
            self._engine = self._loop.run(opening)
        except BaseException:
            self._loop.close()
            raise
        finally:
            progress.close()
        # For programs that end without a shutdown. By the time of `atexit` the thread pools have
        # ended; here it is the turn of what was made last.
        threading._register_atexit(_stop_at_exit, weakref.ref(self))  # pyright: ignore

    @property
    def model(self) -> ModelInfo:
        return self._engine.model

    @property
    def tokenizer(self) -> PromptTokenizer:
        return self._tokenizer

    @property
    def shares_prefixes(self) -> bool:
        """Whether what was computed is kept for later prompts that begin alike."""
        return self._shares_prefixes

    @property
    def loop(self) -> BackgroundLoop:
        """Where the engine runs, for coroutines that use `client`."""
        return self._loop

    @property
    def client(self) -> EngineClient:
        """The engine itself, to be used in `loop` only."""
        return self._engine

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Sampling | Sequence[Sampling] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        stream: bool = False,
        progress_bar: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> Any:
        """The answer to a prompt, or the list of answers to a list of prompts, in their order.

        Prompts are texts or, as `input_ids`, token ids. `sampling_params` is a dict with SGLang's
        names (128 new tokens unless it says otherwise) or SamplingParams, one for all prompts or a
        list with one each. With `stream` it is an iterator over growing answers; those of a list
        carry the `index` of their prompt. `progress_bar` shows one for a list: None, on a terminal
        only.

        Raises InvalidRequest if one of the requests cannot be served as it is; the others are then
        aborted. One that fails later has the finish reason "error", and the others go on.
        """
        call = make_call(prompt, sampling_params, input_ids, **options)
        if stream:
            return stream_answers(self._loop, self._engine, call)
        return self._whole(call, progress_bar)

    async def async_generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Sampling | Sequence[Sampling] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        stream: bool = False,
        **options: Unpack[CallOptions],
    ) -> Any:
        """`generate` for callers with an event loop of their own: awaited, it gives the answers, or
        with `stream` an async iterator. Cancelled or closed, it aborts its requests."""
        call = make_call(prompt, sampling_params, input_ids, **options)
        if stream:
            return async_stream_answers(self._loop, self._engine, call)
        return await self._async_whole(call)

    def _whole(self, call: Call, progress_bar: bool | None) -> Any:
        hidden = not call.is_list or (None if progress_bar is None else not progress_bar)
        with Bar(total=len(call.requests), unit="prompt", disable=hidden) as bar:
            answers = self._loop.run(whole_answers(self._engine, call, bar.update))
        return answers if call.is_list else answers[0]

    async def _async_whole(self, call: Call) -> Any:
        answering = self._loop.submit(whole_answers(self._engine, call, lambda: None))
        answers = await asyncio.wrap_future(answering)
        return answers if call.is_list else answers[0]

    def encode(
        self,
        prompt: str | Sequence[str] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        progress_bar: bool | None = None,
        rid: str | Sequence[str] | None = None,
    ) -> Any:
        """The embedding of a text or of token ids, `{"embedding", "meta_info"}`, or a list of them.

        It is the hidden state of the last token after the model's last norm, scaled to length 1.
        Raises as `generate` does; one that is aborted has no embedding.
        """
        call = make_call(prompt, _EMBEDDING, input_ids, **({} if rid is None else {"rid": rid}))
        return self._whole(call, progress_bar)

    async def async_encode(
        self,
        prompt: str | Sequence[str] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        rid: str | Sequence[str] | None = None,
    ) -> Any:
        """`encode` for callers with an event loop of their own."""
        call = make_call(prompt, _EMBEDDING, input_ids, **({} if rid is None else {"rid": rid}))
        return await self._async_whole(call)

    def tokenize(self, prompt: str | list[dict[str, Any]]) -> list[int]:
        """Token ids of a text, or of messages in the form of the model's chat template.

        Raises InvalidRequest.
        """
        asked = TextPrompt(prompt) if isinstance(prompt, str) else ChatPrompt(prompt)
        return self._loop.run(self._engine.encode(asked))

    def check_grammar(self, grammar: GrammarSpec, prefix: str | bytes = b"") -> GrammarReport:
        """Compile a grammar, follow the beginning of an answer, and say what may come next.

        Raises InvalidRequest.
        """
        data = prefix.encode() if isinstance(prefix, str) else prefix
        return self._loop.run(self._engine.check_grammar(grammar, data))

    def abort(self, rid: str) -> None:
        """End a request, waiting or running, and what is held for it: its caller gets what there
        is, with the finish reason "abort". Idempotent, for any id."""
        self._loop.run(_call(lambda: self._engine.abort(rid)))

    def abort_all(self) -> None:
        """End every request there is, and every hold."""
        self._loop.run(_call(self._engine.abort_all))

    def flush_cache(self) -> None:
        """Forget every cached prefix. Raises Busy while a request runs or waits."""
        self._loop.run(self._engine.flush_cache())

    def update_weights_from_disk(
        self, model_path: str, load_format: str = "auto", weight_version: str | None = None
    ) -> OperationReport:
        """Serve the weights of another checkpoint of the same architecture and sizes.

        Requests that run go on with them, from the tokens they have. Raises OperationRefused or
        OperationFailed; the old weights are served then.
        """
        update = UpdateWeights(
            model_path=model_path, load_format=load_format, weight_version=weight_version
        )
        return self._loop.run(self._engine.operate(update))

    def release_memory_occupation(
        self, tags: Sequence[MemoryPart] = MEMORY_PARTS
    ) -> OperationReport:
        """Free the device's memory; requests wait until it is resumed. Raises OperationRefused."""
        return self._loop.run(self._engine.operate(ReleaseMemory(parts=tuple(tags))))

    def resume_memory_occupation(
        self, tags: Sequence[MemoryPart] = MEMORY_PARTS
    ) -> OperationReport:
        """Take it again. Raises OperationRefused."""
        return self._loop.run(self._engine.operate(ResumeMemory(parts=tuple(tags))))

    def reshard(
        self,
        mesh: str | None = None,
        sharding_rules: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    ) -> OperationReport:
        """Spread the model over another mesh, or by other rules; what is None stays.

        Requests that run go on with the tokens they have. Raises ConfigError for rules that are
        none, OperationRefused for those that do not fit, and OperationFailed; the model stays where
        it is then.
        """
        rules = None if sharding_rules is None else rules_setting(sharding_rules)
        reshard = Reshard(mesh=mesh, sharding_rules=rules)
        return self._loop.run(self._engine.operate(reshard))

    def stats(self) -> EngineStats:
        """As of now."""
        return self._loop.run(_call(self._engine.stats))

    def step_trace(self) -> dict[str, Any]:
        """The last steps as a Chrome trace: JSON for chrome://tracing or ui.perfetto.dev."""
        return self._loop.run(_call(self._engine.step_trace))

    def shutdown(self) -> None:
        """End what still runs and give everything back. Idempotent; afterwards the other methods
        raise Unavailable."""
        with contextlib.suppress(ShutDown):
            self._loop.run(self._engine.stop())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()


def _stop_at_exit(engine: weakref.ref[OfflineEngine]) -> None:
    """End what runs. The loop stays: it could end its thread pool only by another thread."""
    alive = engine()
    if alive is not None:
        with contextlib.suppress(ShutDown):
            alive._loop.run(alive._engine.stop())


async def _call[T](function: Callable[[], T]) -> T:
    """For what must run in the engine's event loop."""
    return function()
