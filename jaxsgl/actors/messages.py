"""What the front and a replica say to each other, whether a socket lies between them or not.

Frames carry any of these as msgpack. One StepOutputs per step and replica, never one message per
token.
"""

from __future__ import annotations

import msgspec

from jaxsgl.interface import (
    EngineOperation,
    EngineStats,
    GrammarReport,
    GrammarSpec,
    ModelInfo,
    OperationReport,
    PauseMode,
    SamplingParams,
)
from jaxsgl.scheduling.outputs import RowOutput


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What another replica brought of an answer before it died."""

    token_ids: list[int]
    """Generated and told; at least one."""
    cached_tokens: int
    """As told then: what the first replica had cached of the prompt."""


class Admit(msgspec.Struct, frozen=True, tag="admit"):
    """front -> replica: a request with its prompt encoded. Answered by outputs, the last with
    `finish`."""

    request_id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    cache_namespace: str = ""
    priority: int = 0
    timeout_s: float | None = None
    told: Told | None = None
    """The answer goes on behind these tokens; nothing of them is told again."""
    tenant: str = ""
    """A name for the holder of an API key that tells nothing of the key itself."""
    hold_s: float | None = None
    """As in `GenerateRequest`."""


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """front -> replica, in order with Admit: an abort that came first would find nobody. Unknown
    ids are ignored: the request may just have ended."""

    request_id: str
    reason: str


class LetGo(msgspec.Struct, frozen=True, tag="let_go"):
    """front -> replica, control lane: end what is held for this request. It was answered before, or
    an Abort of it has been sent. Unknown ids are ignored."""

    request_id: str


class FlushCache(msgspec.Struct, frozen=True, tag="flush"):
    """front -> replica: forget every cached prefix. Answered by Reply, with an error while a
    request runs or waits."""

    ask_id: int


class CheckGrammar(msgspec.Struct, frozen=True, tag="check"):
    """front -> replica: compile a grammar and follow a prefix. Answered by Checked."""

    ask_id: int
    grammar: GrammarSpec
    prefix: bytes


class Operate(msgspec.Struct, frozen=True, tag="operate"):
    """front -> replica: change what is on the devices. Answered by Operated."""

    ask_id: int
    operation: EngineOperation


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """front -> replica: plan no more steps. Answered by Reply when none is in flight."""

    ask_id: int
    mode: PauseMode


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """front -> replica: plan steps again. Answered by Reply."""

    ask_id: int


class StartProfile(msgspec.Struct, frozen=True, tag="start_profile"):
    """front -> replica: write what the devices do to a folder. Answered by Reply, with an error
    while that is being done already."""

    ask_id: int
    folder: str
    duration_s: float


class StopProfile(msgspec.Struct, frozen=True, tag="stop_profile"):
    """front -> replica: end the profile. Answered by Reply once it is written."""

    ask_id: int


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """front -> replica: are you there? Answered by Reply, from the loop that serves requests."""

    ask_id: int


class TrackPrefixes(msgspec.Struct, frozen=True, tag="track_prefixes"):
    """front -> replica, right after Ready: send PrefixChanges from now on."""


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """front -> replica, control lane: admit nothing more, abort what still runs after `timeout_s`,
    then say Drained."""

    timeout_s: float


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """front -> replica, control lane: end now."""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """replica -> front while starting: something to show a person who waits."""

    stage: str
    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """replica -> front, once: weights are loaded and every program is compiled."""

    model: ModelInfo
    max_prompt_len: int
    """Longest prompt that pages and context leave room for (one generated token counted)."""
    notes: tuple[str, ...] = ()
    """Lines for the start message: what was replicated, which backend was chosen."""
    page_size: int = 0
    """Tokens per KV page; 0 where nothing is cached."""


class StartFailed(msgspec.Struct, frozen=True, tag="start_failed"):
    """replica -> front, once, instead of Ready: one line for a person."""

    message: str


class StepOutputs(msgspec.Struct, frozen=True, tag="outputs"):
    """replica -> front: all rows of one step that have something to say."""

    step_id: int
    rows: list[RowOutput]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """replica -> front: the grammar of a request cannot be served; nothing of it was generated.
    Released follows."""

    request_id: str
    message: str


class Released(msgspec.Struct, frozen=True, tag="released"):
    """replica -> front: nothing of these requests is left here; their ids may be forgotten."""

    request_ids: list[str]


class Speed(msgspec.Struct, frozen=True, array_like=True):
    """How fast a replica computed lately, in seconds; 0 where it was not seen yet."""

    prefill_token_s: float = 0.0
    """Per token of a step that mostly computes prompts."""
    decode_step_s: float = 0.0
    """Per step that mostly decodes."""


class Report(msgspec.Struct, frozen=True, tag="report"):
    """replica -> front, every second: the heartbeat."""

    stats: EngineStats
    speed: Speed = Speed()


class PrefixChanges(msgspec.Struct, frozen=True, tag="prefixes"):
    """replica -> front: how the set of cached prefixes has changed, as `cache.page_hash` names
    them, HASH_BYTES each."""

    added: bytes
    dropped: bytes
    cleared: bool = False
    """Everything that was cached before is gone; `added` came after that."""


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    ask_id: int
    error: str | None = None


class Checked(msgspec.Struct, frozen=True, tag="checked"):
    """replica -> front: a report, or why the grammar cannot be served."""

    ask_id: int
    report: GrammarReport | None = None
    error: str | None = None


class Operated(msgspec.Struct, frozen=True, tag="operated"):
    """replica -> front: how things are now, or why nothing came of it."""

    ask_id: int
    report: OperationReport | None = None
    error: str | None = None
    refused: bool = False
    """With `error`: whether the operation itself was at fault."""


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    pass


ToReplica = (
    Admit
    | Abort
    | LetGo
    | FlushCache
    | CheckGrammar
    | Operate
    | Pause
    | Resume
    | StartProfile
    | StopProfile
    | Probe
    | TrackPrefixes
    | Drain
    | Stop
)
ToFront = (
    Progress
    | Ready
    | StartFailed
    | StepOutputs
    | Refused
    | Released
    | Report
    | PrefixChanges
    | Reply
    | Checked
    | Operated
    | Drained
)

CONTROL = (LetGo, Drain, Stop)
"""Messages that overtake waiting data."""
