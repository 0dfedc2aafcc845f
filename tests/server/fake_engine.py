"""An engine whose answers can be worked out by hand.

A token is a byte. The answer to a prompt is its own bytes over and over, begun `seed` bytes later:

    prompt "abc", max_tokens 5            -> "abcab", finish length
    prompt "abc", max_tokens 5, seed 1    -> "bcabc", finish length
    prompt "abc", stop "ca"               -> "ab", finish stop, matched "ca"
    prompt "ab\\n"                         -> "ab", finish stop: the line break is the end token

Deltas bring one token each; the text of a character comes with its last byte. Half of the prompt
counts as cached. Token t has log-probability -0.5 and its alternatives t, t + 1, ... have
-0.5, -1.5, ... A token of the prompt, where that is asked for, has -0.25.

An embedding has the direction of (bytes of the prompt, first byte, last byte).
"""

from __future__ import annotations

import array
import asyncio
import codecs
import math
from collections.abc import AsyncGenerator

import msgspec

from jaxsgl.interface import (
    Busy,
    Delta,
    EngineError,
    EngineOperation,
    EngineStats,
    Finish,
    GenerateRequest,
    GrammarReport,
    GrammarSpec,
    InvalidRequest,
    ModelInfo,
    OperationReport,
    PauseMode,
    Prompt,
    ReleaseMemory,
    ReplicaReport,
    Reshard,
    TerminalReport,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    UnknownReplica,
    Usage,
)

END_TOKEN = ord("\n")
CONTEXT_LEN = 64
MAX_TOKENS = 4096


class FakeEngine:
    """An EngineClient. `open` holds the ids of requests that run."""

    def __init__(self) -> None:
        self.model = ModelInfo(
            name="fake-model",
            architecture="fake",
            vocab_size=256,
            context_len=CONTEXT_LEN,
            eos_token_ids=(END_TOKEN,),
            embedding_len=3,
            has_chat_template=True,
            num_devices=1,
            mesh="tp=1",
            platform="cpu",
            attention_backend="xla",
        )
        self.ready = True
        self.alive = True
        self.requests: list[GenerateRequest] = []
        self.open: set[str] = set()
        self.num_deltas = 0
        self.orders: list[tuple[str, int]] = []
        """Given to replicas."""
        self.checked: list[tuple[GrammarSpec, bytes]] = []
        self.operations: list[EngineOperation] = []
        self.refusal: EngineError | None = None
        """Raised before the first delta."""
        self.break_after: tuple[int, Exception] | None = None
        """Raised in place of the delta of that number."""
        self.hold_after: int | None = None
        """The delta of that number waits until `release`."""
        self.endless_text: str | None = None
        """Every delta brings this text, without end."""
        self.orders: list[tuple[object, ...]] = []
        """What it was told to do, in order."""
        self.profiling = False
        self.held = asyncio.Event()
        """Set once a request waits for `release`."""
        self.release = asyncio.Event()
        self._started = asyncio.Event()
        self._idle = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        deltas = [] if self.endless_text else answer(request)
        self.open.add(request.request_id)
        self._started.set()
        self._idle.clear()
        try:
            for number, delta in enumerate(deltas):
                await self._pass(number)
                self.num_deltas += 1
                yield delta
            while self.endless_text:
                await asyncio.sleep(0)
                self.num_deltas += 1
                yield Delta(self.endless_text, [0], Usage(1, 1, 0))
        finally:
            self.open.discard(request.request_id)
            if not self.open:
                self._idle.set()

    async def _pass(self, number: int) -> None:
        await asyncio.sleep(0)
        if self.hold_after == number:
            self.held.set()
            await self.release.wait()
        if self.break_after is not None and self.break_after[0] == number:
            raise self.break_after[1]

    async def idle(self) -> None:
        """Returns once a request has run and none does any more."""
        await self._started.wait()
        await self._idle.wait()

    async def check_grammar(self, grammar: GrammarSpec, prefix: bytes) -> GrammarReport:
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        self.checked.append((grammar, prefix))
        return GrammarReport(
            engine="lark",
            compile_ms=1.23456,
            terminals=[TerminalReport("A", "a+")],
            conflicts=[],
            warnings=["nothing is real"],
            prefix_taken_len=min(2, len(prefix)),
            num_allowed_tokens=2,
            allowed_tokens=[(END_TOKEN, b""), (200, bytes([200]))],
            can_end=True,
            forced="é".encode(),
        )

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        await asyncio.sleep(0)
        if any(token_id > 255 for token_id in token_ids):
            raise InvalidRequest("not a token", param="tokens")
        text = bytes(token_ids).decode(errors="replace")
        return text.replace("\n", "") if skip_special_tokens else text

    @property
    def num_devices(self) -> int:
        return 1 if self.ready else 0

    def abort(self, request_id: str) -> None:
        self.orders.append(("abort", request_id))

    def abort_all(self) -> None:
        self.orders.append(("abort_all",))

    async def pause(self, mode: PauseMode) -> None:
        await asyncio.sleep(0)
        self.orders.append(("pause", mode))

    async def resume(self) -> None:
        await asyncio.sleep(0)
        self.orders.append(("resume",))

    async def start_profile(self, folder: str, duration_s: float) -> None:
        await asyncio.sleep(0)
        if self.profiling:
            raise Busy("a profile is being taken")
        self.profiling = True
        self.orders.append(("start_profile", folder, duration_s))

    async def stop_profile(self) -> None:
        await asyncio.sleep(0)
        if not self.profiling:
            raise Busy("no profile is being taken")
        self.profiling = False

    async def flush_cache(self) -> None:
        await asyncio.sleep(0)
        if self.open:
            raise Busy("requests run")

    async def operate(self, operation: EngineOperation) -> OperationReport:
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        self.operations.append(operation)
        released = operation.parts if isinstance(operation, ReleaseMemory) else ()
        mesh = operation.mesh if isinstance(operation, Reshard) else None
        return OperationReport(
            weight_version="v2", released=released, mesh=mesh or "tp=1", paused_s=1.5
        )

    def replicas(self) -> list[ReplicaReport]:
        return [
            ReplicaReport(
                replica_id=replica_id,
                state="ready",
                epoch=0,
                devices=(str(replica_id),),
                weight=1.0,
                num_in_flight=len(self.open),
                backlog_tokens=0,
                stats=self.stats(),
            )
            for replica_id in range(2)
        ]

    def drain_replica(self, replica_id: int) -> None:
        self._order("drain", replica_id)

    def restart_replica(self, replica_id: int) -> None:
        self._order("restart", replica_id)

    def _order(self, order: str, replica_id: int) -> None:
        if not 0 <= replica_id < 2:
            raise UnknownReplica(f"there is no replica {replica_id}")
        self.orders.append((order, replica_id))

    async def encode(self, prompt: Prompt) -> list[int]:
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        return list(prompt_bytes(prompt))

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self.open), pages_total=10, pages_free=6, pages_cached=2, recompiles=3
        )


def answer(request: GenerateRequest) -> list[Delta]:
    """The deltas of a request, the last with its finish. Raises InvalidRequest if it is empty, or
    wants a great many tokens: nothing is allocated for what a client claims."""
    sampling = request.sampling
    prompt = prompt_bytes(request.prompt)
    start = (sampling.seed or 0) % len(prompt)
    limit = CONTEXT_LEN if sampling.max_tokens is None else sampling.max_tokens
    if limit > MAX_TOKENS:
        raise InvalidRequest(f"at most {MAX_TOKENS} tokens fit", code="context_length_exceeded")
    repeats = prompt[start:] + prompt * (limit // len(prompt) + 1)
    token_ids, finish = list(repeats[:limit]), Finish("length")
    ends = (*sampling.stop_token_ids, *(() if sampling.ignore_eos else (END_TOKEN,)))
    for position, token_id in enumerate(token_ids):
        if token_id in ends:
            matched = token_id if token_id in sampling.stop_token_ids else None
            token_ids, finish = token_ids[:position], Finish("stop", matched)
            break
    for stop in sampling.stop:
        before, found, _ = bytes(token_ids).partition(stop.encode())
        if found:
            token_ids, finish = list(before), Finish("stop", stop)
    deltas = _deltas(token_ids, finish, len(prompt), sampling.logprobs)
    if sampling.prompt_logprobs:
        first = msgspec.structs.replace(deltas[0], prompt_logprobs=_prompt_logprobs(request))
        deltas[0] = first
    if sampling.embedding:
        deltas[-1] = msgspec.structs.replace(deltas[-1], embedding=embedding_of(prompt))
    return deltas


def embedding_of(prompt: bytes) -> bytes:
    values = (len(prompt), prompt[0], prompt[-1])
    return array.array("f", [value / math.hypot(*values) for value in values]).tobytes()


def _prompt_logprobs(request: GenerateRequest) -> list[TokenLogprob | None]:
    sampling = request.sampling
    num_top = sampling.logprobs or 0
    entries = [
        TokenLogprob(token_id, -0.25, [(token_id + i, -0.25 - i) for i in range(num_top)])
        for token_id in prompt_bytes(request.prompt)
    ]
    num_none = max(1, sampling.prompt_logprobs_from)
    return [*[None] * num_none, *entries[num_none:]][: len(entries)]


def _deltas(
    token_ids: list[int], finish: Finish, prompt_len: int, num_logprobs: int | None
) -> list[Delta]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    deltas: list[Delta] = []
    for count, token_id in enumerate(token_ids, start=1):
        text = decoder.decode(bytes([token_id]), final=count == len(token_ids))
        logprobs = None
        if num_logprobs is not None:
            top = [(token_id + i, -0.5 - i) for i in range(num_logprobs)]
            logprobs = [TokenLogprob(token_id, -0.5, top)]
        usage = Usage(prompt_len, count, prompt_len // 2)
        last = finish if count == len(token_ids) else None
        deltas.append(Delta(text, [token_id], usage, last, logprobs))
    deltas = deltas or [Delta("", [], Usage(prompt_len, 0, prompt_len // 2), finish)]
    deltas[-1] = msgspec.structs.replace(deltas[-1], weight_version="default")
    return deltas


def prompt_bytes(prompt: Prompt) -> bytes:
    if isinstance(prompt, TextPrompt):
        data = prompt.text.encode()
    elif isinstance(prompt, TokenPrompt):
        if not all(0 <= token_id < 256 for token_id in prompt.token_ids):
            raise InvalidRequest("prompt holds a token id that is none", param="prompt")
        data = bytes(prompt.token_ids)
    else:
        data = prompt.messages[-1]["content"].encode()
    if not data:
        raise InvalidRequest("The prompt is empty", param="prompt")
    return data
