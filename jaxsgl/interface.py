"""The public contract between an engine and whoever asks it for tokens.

The HTTP server, the offline API and the prompt language all speak in these types, and only in
these. Nothing here imports jax, asyncio or a tokenizer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Literal, Protocol

import msgspec

MAX_TOP_LOGPROBS = 20
"""Most alternatives per position that a request may ask for (OpenAI's limit)."""
MAX_ALLOWED_IDS = 1 << 18
MIN_REPETITION_PENALTY = 1e-6
"""Logits are divided by it, and stay finite."""


class LarkGrammar(msgspec.Struct, frozen=True, tag="lark"):
    """The answer is a text of a grammar in Lark's language, read as Lark's LALR parser with its
    contextual lexer would."""

    text: str
    start: str = "start"


class RegexGrammar(msgspec.Struct, frozen=True, tag="regex"):
    """The whole answer matches a Python regular expression."""

    pattern: str


class ChoiceGrammar(msgspec.Struct, frozen=True, tag="choice"):
    """The answer is one of these texts."""

    choices: tuple[str, ...]


class JsonObjectGrammar(msgspec.Struct, frozen=True, tag="json_object"):
    """The answer is a JSON object."""


class JsonSchemaGrammar(msgspec.Struct, frozen=True, tag="json_schema"):
    """The answer is JSON that a schema accepts."""

    schema: str
    """As JSON text: the order of properties in it is the order in which they are generated."""


class EbnfGrammar(msgspec.Struct, frozen=True, tag="ebnf"):
    """The answer is a text of a grammar in the notation of llama.cpp and SGLang (GBNF)."""

    text: str
    start: str = "root"


GrammarSpec = (
    LarkGrammar | RegexGrammar | ChoiceGrammar | JsonObjectGrammar | JsonSchemaGrammar | EbnfGrammar
)
"""What an answer must look like."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the tokens of one request are drawn, and when drawing ends.

    Every field is honoured. Bounds are checked by `check_sampling`; a draw depends on `seed` and on
    the token's position alone, never on the other rows of a step.
    """

    max_tokens: int | None = None
    """Tokens to generate at most; None means up to the model's context length. With 0 the prompt is
    computed, and cached, and that is all."""
    min_tokens: int = 0
    """No stop, end-of-sequence or stop string before this many tokens."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = -1
    """Draw among the k most likely tokens; -1 is all of them."""
    min_p: float = 0.0
    """Draw only among tokens at least `min_p` times as likely as the most likely one."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    """Added to the logits of these token ids before anything else."""
    seed: int | None = None
    """None lets the engine choose one."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; the text itself is not part of it, or see `include_stop`."""
    stop_regex: tuple[str, ...] = ()
    """Python regular expressions; the answer ends where one of them has matched first."""
    include_stop: bool = False
    """Leave what ended the answer (a text, a match, the text of a token) at the end of it."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    allowed_token_ids: tuple[int, ...] | None = None
    """No other tokens are drawn, those that end an answer included."""
    bad_words: tuple[str, ...] = ()
    """Texts that the answer never contains."""
    skip_special_tokens: bool = True
    """False: control tokens stand in the text as they are written."""
    logprobs: int | None = None
    """None: no log-probabilities. n: that of each token, and of the n most likely alternatives."""
    prompt_logprobs: bool = False
    """Log-probability of each prompt token given those before it (the first has none)."""
    prompt_logprobs_from: int = 0
    """The first prompt token whose log-probability is wanted. Those before it have none, and need
    not be computed again if they are cached."""
    embedding: bool = False
    """With `max_tokens` 0: the answer is the hidden state of the prompt's last token."""
    grammar: GrammarSpec | None = None
    """The form of the answer. It ends where the grammar leaves nothing to add, whatever
    `min_tokens` and `ignore_eos` say; it can be cut short by `max_tokens`, `stop` and
    `stop_token_ids`, the last only where the grammar can end."""
    strict_complete: bool = False
    """Lead the answer to an end of its grammar before `max_tokens` cut it short."""
    grammar_after: str | None = None
    """The answer is free up to the first time it contains this text; what follows, but for white
    space, is held to the grammar."""
    grammar_repeats: bool = False
    """With `grammar_after`: the answer may end while it is free, and is free again after each text
    of the grammar."""

    @property
    def is_constrained(self) -> bool:
        """Whether draws need a mask of tokens."""
        return (
            self.grammar is not None or self.allowed_token_ids is not None or bool(self.bad_words)
        )


class TextPrompt(msgspec.Struct, frozen=True, tag="text"):
    """Plain text, encoded as text: control tokens written in it stay ordinary characters."""

    text: str
    add_special_tokens: bool = True
    """With what the model wants around every prompt, such as a token that begins it."""


class TokenPrompt(msgspec.Struct, frozen=True, tag="tokens"):
    token_ids: list[int]
    param: str = "prompt"
    """The field that a complaint about the prompt names."""


class ChatPrompt(msgspec.Struct, frozen=True, tag="chat"):
    """Messages for the model's chat template."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    """The prompt ends with the last message's content, which the answer goes on with."""
    tools: list[dict[str, Any]] | None = None
    """As OpenAI declares them. Where the template has no place for them they go into a system
    message."""
    variables: dict[str, Any] = {}
    """Further variables of the template."""


Prompt = TextPrompt | TokenPrompt | ChatPrompt


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, one answer."""

    request_id: str
    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    cache_namespace: str = ""
    """Prefixes are shared only between requests of equal namespace."""
    tenant: str = ""
    """Whose request it is: tenants take turns. A namespace is of one tenant."""
    priority: int = 0
    """Larger is more urgent; used by the `priority` schedule policy alone."""
    timeout_s: float | None = None
    """What the whole answer may take. DeadlineExceeded when it is over, or was from the start."""


FinishKind = Literal["stop", "length", "abort", "deadline", "shutdown", "error"]
"""`abort`: somebody asked for it; `shutdown`: the engine ended first."""


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """Why a request ended."""

    kind: FinishKind
    matched: str | int | None = None
    """The stop string or token id that ended it, where one did."""
    message: str | None = None
    """What went wrong, for `error`; why, for `abort`, `deadline` and `shutdown`."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []
    """The most likely (token id, logprob) at this position, best first."""


class Usage(msgspec.Struct, frozen=True, array_like=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens whose KV came from the radix cache at first admission."""


class Delta(msgspec.Struct, frozen=True):
    """What became known of an answer since the last delta. The last one carries `finish`."""

    text: str
    token_ids: list[int]
    usage: Usage
    finish: Finish | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Given once, with the first delta, when it was asked for."""
    weight_version: str | None = None
    """With `finish`: `ModelInfo.weight_version` of the step that ended the answer."""
    embedding: bytes | None = None
    """With `finish`, if it was asked for: the hidden state of the prompt's last token after the
    model's last norm, scaled to length 1, as float32 in the machine's byte order."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """What `/v1/models` calls it."""
    architecture: str
    vocab_size: int
    context_len: int
    eos_token_ids: tuple[int, ...]
    embedding_len: int = 0
    """Numbers in an embedding: the model's hidden size."""
    has_chat_template: bool
    num_devices: int
    mesh: str
    """As on the command line, for example "tp=1"."""
    platform: str
    """jax's name of the device kind: cpu, gpu or tpu."""
    attention_backend: str
    """The kernels in use: triton or xla."""
    tool_format: str = "hermes"
    """The form in which the chat template has the model write tool calls."""
    weight_version: str = "default"
    """What the weights in use are called; changed by UpdateWeights."""


class TerminalReport(msgspec.Struct, frozen=True):
    name: str
    pattern: str


class GrammarReport(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to say about a grammar, and the state after a prefix."""

    engine: str
    """`lark`, the project's own, or `llguidance`, of which terminals and conflicts are unknown."""
    compile_ms: float
    """Up to and including the first mask."""
    terminals: list[TerminalReport]
    conflicts: list[str]
    """What an LALR(1) parser could not decide; all readings are followed."""
    warnings: list[str]
    """What of the grammar is ignored."""
    prefix_taken_len: int
    """Bytes of the prefix that the grammar takes; the rest describes the state after them."""
    num_allowed_tokens: int
    allowed_tokens: list[tuple[int, bytes]]
    """(id, bytes) of the first by id; those that end the answer have no bytes."""
    can_end: bool
    forced: bytes
    """What every continuation begins with."""
    error: str | None = None


TIME_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper ends of the buckets of a TimeHistogram; the last bucket has none."""


class TimeHistogram(msgspec.Struct, frozen=True, array_like=True):
    """How often something took how long. Histograms add up, also with 0."""

    counts: tuple[int, ...] = (0,) * (len(TIME_BOUNDS_S) + 1)
    """Of each bucket alone."""
    sum_s: float = 0.0

    def __add__(self, other: TimeHistogram) -> TimeHistogram:
        counts = tuple(map(sum, zip(self.counts, other.counts, strict=True)))
        return TimeHistogram(counts, self.sum_s + other.sum_s)

    def __radd__(self, nothing: int) -> TimeHistogram:
        return self


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A moment's reading of one replica. Counters run since its start."""

    num_running: int = 0
    num_waiting: int = 0
    pages_total: int = 0
    """Pages that requests and the radix cache can own (the scratch page is not counted)."""
    pages_free: int = 0
    pages_cached: int = 0
    """Held by the radix cache and by no request."""
    pages_held_peak: int = 0
    """The most pages that requests held at one time, each page counted once."""
    locks: int = 0
    slots_free: int = 0
    slots_total: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    """Of all requests, counted when they are admitted for the first time."""
    cached_tokens: int = 0
    """Those of them that came from the radix cache."""
    recomputed_tokens: int = 0
    """Tokens computed again after a retraction or a failed step."""
    generated_tokens: int = 0
    requests_finished: int = 0
    requests_aborted: int = 0
    requests_retracted: int = 0
    recompiles: int = 0
    cache_rebuilds: int = 0
    """Times that the KV cache was thrown away after a failed step or a wrong recount."""
    tokens_held: int = 0
    """Room for tokens in the pages that requests hold."""
    generated_per_s: float = 0.0
    """Tokens generated per second, over the last ten."""
    queue_time: TimeHistogram = TimeHistogram()
    """From the arrival of a request in the replica to its first place in a step."""
    step_time: TimeHistogram = TimeHistogram()
    """Of a step on the device."""
    mask_time: TimeHistogram = TimeHistogram()
    """What a step with constrained draws waited for token masks and spent on laying them out."""


MemoryPart = Literal["kv_cache", "weights"]
MEMORY_PARTS: tuple[MemoryPart, ...] = ("kv_cache", "weights")


class UpdateWeights(msgspec.Struct, frozen=True, kw_only=True, tag="update_weights"):
    """Serve the weights of another checkpoint of the same architecture and sizes."""

    model_path: str
    """As in `EngineConfig`."""
    load_format: str = "auto"
    weight_version: str | None = None
    """What to call them; None takes the number of updates since the start."""


class ReleaseMemory(msgspec.Struct, frozen=True, kw_only=True, tag="release_memory"):
    """Give device memory back and hold all requests until it is resumed. Weights are kept in the
    host's memory meanwhile. Parts that are released already stay so."""

    parts: tuple[MemoryPart, ...] = MEMORY_PARTS


class ResumeMemory(msgspec.Struct, frozen=True, kw_only=True, tag="resume_memory"):
    """Take the memory again. Requests go on when nothing is released any more."""

    parts: tuple[MemoryPart, ...] = MEMORY_PARTS


class Reshard(msgspec.Struct, frozen=True, kw_only=True, tag="reshard"):
    """Spread the model otherwise: over another mesh, or by other rules. The page pool keeps its
    size."""

    mesh: str | None = None
    """As in `EngineConfig`; None leaves it as it is. So with the rules."""
    sharding_rules: str | dict[str, str | list[str]] | None = None
    """As in `EngineConfig`, or mesh axes by the axis that is spread over them."""


EngineOperation = UpdateWeights | ReleaseMemory | ResumeMemory | Reshard
"""A change of what is on the devices. It is made between two steps; the KV cache is empty after it,
and requests that were running compute again what they had."""


class OperationReport(msgspec.Struct, frozen=True, kw_only=True):
    """How things are after an operation."""

    weight_version: str
    released: tuple[MemoryPart, ...]
    mesh: str = "tp=1"
    """As in `ModelInfo`."""
    notes: tuple[str, ...] = ()
    """What had to be replicated or repeated on it."""


PauseMode = Literal["abort", "in_place", "retract"]
"""What becomes of the requests that run: they end, keep their KV, or give it up to compute it again
later."""


class ReplicaLatency(msgspec.Struct, frozen=True, kw_only=True):
    """What the clients of a replica waited lately, in seconds; None before the first."""

    excess_ttft_s: float | None
    """To the first token, beyond what computing the uncached prompt takes."""
    inter_token_s: float | None
    """Per token after it."""


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True):
    """One replica as the front sees it."""

    replica_id: int
    state: str
    """starting, ready, draining, stopped (on purpose), dead (being restarted) or failed (it died
    too often)."""
    epoch: int
    """Times that it was started again."""
    devices: tuple[str, ...]
    """As the driver numbers them."""
    weight: float
    """Its share under the weighted policy."""
    num_in_flight: int
    """Requests sent to it that have not ended."""
    backlog_tokens: int
    """Uncached prompt tokens of those of them that have no answer yet."""
    stats: EngineStats
    """As it reported last."""
    latency: ReplicaLatency | None = None
    """None unless latencies are followed."""


class EngineError(Exception):
    """Base of what `generate` raises; `code` is OpenAI's machine-readable code or None."""

    status = 500
    kind = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(EngineError):
    """The request can never be served as it is."""

    status = 400
    kind = "invalid_request_error"


class InvalidGrammar(InvalidRequest):
    """The grammar cannot be served as it is; the message is for its author."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_grammar")


class Busy(EngineError):
    """It cannot be done while requests run or wait; the same may succeed later."""

    status = 400
    kind = "invalid_request_error"


class OperationRefused(EngineError):
    """The operation cannot be carried out as it is; nothing has changed."""

    status = 400
    kind = "invalid_request_error"


class OperationFailed(EngineError):
    """The operation did not succeed: all is as before, but the KV cache is empty."""


class QueueFull(EngineError):
    status = 429
    kind = "rate_limit_error"


class Unavailable(EngineError):
    """The engine is starting, draining or gone; the same request may succeed later."""

    status = 503
    kind = "server_error"


class DeadlineExceeded(EngineError):
    """The request's own time limit passed before its answer was complete."""

    status = 504
    kind = "server_error"


class UnknownReplica(EngineError):
    status = 404
    kind = "invalid_request_error"


class EngineClient(Protocol):
    """What a front end needs of an engine."""

    @property
    def model(self) -> ModelInfo: ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Yield deltas until one carries `finish`.

        Raises an `EngineError` before the first delta if the request is refused, and after some
        deltas if the engine ends, or the request's time does, before the answer. Closing the
        generator (or cancelling the task in it) aborts the request; its pages come back within a
        step.
        """
        ...

    async def encode(self, prompt: Prompt) -> list[int]:
        """The token ids that `generate` would make of a prompt. Raises as that does."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be admitted."""
        ...

    @property
    def alive(self) -> bool:
        """Whether every part of the engine has shown a sign of life lately; false is beyond
        repair."""
        ...

    async def flush_cache(self) -> None:
        """Forget every cached prefix. Raises Busy while a request runs or waits; after
        `pause("retract")` requests may wait."""
        ...

    async def check_grammar(self, grammar: GrammarSpec, prefix: bytes) -> GrammarReport:
        """Compile a grammar and follow a prefix. Raises InvalidRequest."""
        ...

    async def operate(self, operation: EngineOperation) -> OperationReport:
        """Change what is on the devices, as soon as the steps on their way are through.

        Raises OperationRefused or OperationFailed, either of which leaves everything serving as it
        was, and Unavailable if the engine is not ready."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, for showing log-probabilities; not always whole UTF-8."""
        ...

    def stats(self) -> EngineStats:
        """The latest report of the replicas, summed. Counters also count those that are gone."""
        ...

    @property
    def num_devices(self) -> int:
        """Devices of the replicas that take requests now."""
        ...

    def replicas(self) -> list[ReplicaReport]:
        """How each replica is doing, by id."""
        ...

    def drain_replica(self, replica_id: int) -> None:
        """Send it nothing new, let its requests end or move, and stop it. Returns at once;
        `replicas` tells how far it is. Raises UnknownReplica."""
        ...

    def restart_replica(self, replica_id: int) -> None:
        """The same, and then start it again. Also starts one that is stopped or has failed."""
        ...


class ServedEngine(EngineClient, Protocol):
    """What a server needs beyond that."""

    def abort(self, request_id: str) -> None:
        """End the request of this id, or those whose id is this, a hyphen and more: their readers
        still get a last delta. Idempotent, for any id."""
        ...

    def abort_all(self) -> None:
        """End every request in the same way."""
        ...

    async def pause(self, mode: PauseMode) -> None:
        """Compute nothing more until `resume`. Returns when no step runs. Requests are still
        accepted, and wait. Draining, and a replica that starts again, resume."""
        ...

    async def resume(self) -> None:
        """The end of `pause`. Idempotent."""
        ...

    async def start_profile(self, folder: str, duration_s: float) -> None:
        """Write what the devices do to `folder`, until `stop_profile` or for `duration_s`. Raises
        Busy while a profile is being taken."""
        ...

    async def stop_profile(self) -> None:
        """Returns when the profile is written. Raises Busy if none is being taken."""
        ...

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids. Raises InvalidRequest for ids that are none."""
        ...


def check_sampling(sampling: SamplingParams) -> None:
    """Raise InvalidRequest naming the first field that is out of bounds."""

    def bad(param: str, why: str) -> InvalidRequest:
        return InvalidRequest(f"{param} {why}", param=param)

    s = sampling
    if s.prompt_logprobs_from < 0:
        raise bad("prompt_logprobs_from", "must be at least 0")
    if s.max_tokens is not None and s.max_tokens < 0:
        raise bad("max_tokens", "must not be negative")
    if s.min_tokens < 0 or (s.max_tokens is not None and s.min_tokens > s.max_tokens):
        raise bad("min_tokens", "must be between 0 and max_tokens")
    # Written so that NaN fails every test.
    if not 0.0 <= s.temperature <= 2.0:
        raise bad("temperature", "must be between 0 and 2")
    if not 0.0 < s.top_p <= 1.0:
        raise bad("top_p", "must be above 0 and at most 1")
    if s.top_k != -1 and not 1 <= s.top_k < 2**31:
        raise bad("top_k", "must be -1 (all tokens) or at least 1")
    if not 0.0 <= s.min_p <= 1.0:
        raise bad("min_p", "must be between 0 and 1")
    for param, value in (
        ("presence_penalty", s.presence_penalty),
        ("frequency_penalty", s.frequency_penalty),
    ):
        if not -2.0 <= value <= 2.0:
            raise bad(param, "must be between -2 and 2")
    if not MIN_REPETITION_PENALTY <= s.repetition_penalty <= 2.0:
        raise bad("repetition_penalty", f"must be between {MIN_REPETITION_PENALTY} and 2")
    if s.embedding and (s.max_tokens != 0 or s.is_constrained):
        raise bad("embedding", "needs max_tokens 0, and no grammar")
    if s.strict_complete and s.grammar is None:
        raise bad("strict_complete", "needs a grammar")
    if s.strict_complete and (s.allowed_token_ids is not None or s.bad_words or s.grammar_after):
        what = "allowed_token_ids, bad_words and grammars that begin within an answer"
        raise bad("strict_complete", f"is not to be had together with {what}")
    if s.grammar_after is not None and (s.grammar is None or not s.grammar_after):
        raise bad("grammar_after", "needs a grammar and must not be empty")
    if s.seed is not None and not -(2**63) <= s.seed < 2**63:
        raise bad("seed", "must fit in 64 bits")
    if len(s.stop) > 16 or any(not 0 < len(text) <= 256 for text in s.stop):
        raise bad("stop", "takes at most 16 texts of 1 to 256 characters")
    if len(s.stop_token_ids) > 16:
        raise bad("stop_token_ids", "takes at most 16 ids")
    if len(s.stop_regex) > 4 or any(not 0 < len(pattern) <= 256 for pattern in s.stop_regex):
        raise bad("stop_regex", "takes at most 4 patterns of 1 to 256 characters")
    if s.allowed_token_ids is not None and not 1 <= len(s.allowed_token_ids) <= MAX_ALLOWED_IDS:
        raise bad("allowed_token_ids", f"takes 1 to {MAX_ALLOWED_IDS} ids")
    if len(s.bad_words) > 64 or any(not 0 < len(word) <= 256 for word in s.bad_words):
        raise bad("bad_words", "takes at most 64 texts of 1 to 256 characters")
    if len(s.logit_bias) > 1024 or any(not -100.0 <= v <= 100.0 for v in s.logit_bias.values()):
        raise bad("logit_bias", "takes at most 1024 entries between -100 and 100")
    if s.logprobs is not None and not 0 <= s.logprobs <= MAX_TOP_LOGPROBS:
        raise bad("logprobs", f"must be between 0 and {MAX_TOP_LOGPROBS}")
