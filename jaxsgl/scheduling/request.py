"""One request inside a replica: two counters, and what it holds."""

from __future__ import annotations

from array import array
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from jaxsgl.cache.manager import Lease
from jaxsgl.grammar.constraint import Constraint
from jaxsgl.grammar.pattern_dfa import pattern_dfa
from jaxsgl.interface import Finish, SamplingParams, TokenLogprob
from jaxsgl.scheduling.stop_matcher import StopMatcher


class Status(Enum):
    COMPILING = "compiling"
    """Its grammar is being compiled. Holds nothing and is in no queue."""
    WAITING = "waiting"
    """Holds nothing."""
    RUNNING = "running"
    """Holds a slot and a lease; takes part in steps."""
    RETRACTING = "retracting"
    """Gave up its place; holds slot and lease until its last dispatched step has retired."""
    FINISHING = "finishing"
    """Its answer is complete; holds slot and lease until its last dispatched step has retired."""
    DONE = "done"


class Request:
    """A prompt being answered.

    `known` tokens are the prompt and the accepted draws, `computed` is how many of them (and of the
    draws still on the device) have KV once every dispatched step has run. There is no prefill or
    decode phase: a request simply wants `known + pending - computed` tokens.
    """

    __slots__ = (
        "_known_ids",
        "arrival",
        "cached_tokens",
        "committed",
        "computed",
        "deadline_s",
        "emitted_prompt_logprobs",
        "end_token_ids",
        "finish",
        "grammar",
        "hold_s",
        "last_step_id",
        "lease",
        "max_overtaken",
        "namespace",
        "num_failures",
        "num_overtaken",
        "num_scored",
        "page_order",
        "pending",
        "priority",
        "prompt_len",
        "prompt_logprobs",
        "published",
        "request_id",
        "sampling",
        "slot",
        "status",
        "stop_matcher",
        "tenant",
        "tokens",
        "void_step_id",
        "want_limit",
    )

    def __init__(
        self,
        request_id: str,
        prompt_ids: list[int],
        sampling: SamplingParams,
        *,
        arrival: int,
        max_len: int,
        eos_token_ids: tuple[int, ...],
        namespace: str = "",
        tenant: str = "",
        priority: int = 0,
        deadline_s: float | None = None,
        hold_s: float | None = None,
    ) -> None:
        self.request_id = request_id
        self.sampling = sampling
        self.arrival = arrival
        self.namespace = namespace
        self.tenant = tenant
        self.priority = priority
        self.deadline_s = deadline_s
        """On the scheduler's clock."""
        self.hold_s = hold_s
        """How long its prompt is to stay in the cache when it has been computed."""
        self.prompt_len = len(prompt_ids)
        self.tokens = array("I", prompt_ids)
        """Every known token: the prompt, then what was generated. No list: that would be an object
        per token to look at again for whoever copies or frees it."""
        self._known_ids = np.empty(0, np.int32)
        max_tokens = max_len if sampling.max_tokens is None else sampling.max_tokens
        self.want_limit = min(self.prompt_len + max_tokens, max_len)
        """Known tokens at which the answer ends with "length"."""
        self.end_token_ids = (
            () if sampling.ignore_eos else eos_token_ids
        ) + sampling.stop_token_ids
        self.stop_matcher = None
        if sampling.stop or sampling.stop_regex:
            patterns = tuple(map(pattern_dfa, sampling.stop_regex))
            self.stop_matcher = StopMatcher(sampling.stop, patterns, keep=sampling.include_stop)
        num_unscored = min(max(1, sampling.prompt_logprobs_from), self.prompt_len)
        unscored: list[TokenLogprob | None] = [None] * num_unscored
        self.prompt_logprobs = unscored if sampling.prompt_logprobs else None
        """One entry per prompt token scored so far; the first tokens have none."""
        self.num_scored = num_unscored
        """How many there will be once all dispatched steps have run."""
        self.emitted_prompt_logprobs = False
        self.grammar: Constraint | None = None
        """What its draws are held to."""

        self.status = Status.WAITING
        self.finish: Finish | None = None
        self.slot = -1
        self.lease: Lease | None = None
        self.computed = 0
        self.committed = 0
        """Tokens with KV once every *applied* step has run."""
        self.published = False
        """Whether the prompt's KV is in the radix cache for others to use."""
        self.pending = 0
        """Draws dispatched and not yet read."""
        self.page_order = b""
        """Sorts running requests by the pages they begin with."""
        self.last_step_id = -1
        """The newest dispatched step that mentions this request."""
        self.void_step_id = -1
        """What steps up to this one brought the request counts for nothing."""
        self.num_overtaken = 0
        """Later arrivals that were admitted before this one."""
        self.max_overtaken = 0
        """As many as may be; set by the queue."""
        self.num_failures = 0
        """Failed steps that this request was placed at."""
        self.cached_tokens = -1
        """Prompt tokens reused at first admission; -1 before it."""

    def known_ids(self) -> NDArray[np.int32]:
        """`tokens` as an array; cheap while the request waits and nothing is added."""
        if len(self._known_ids) != len(self.tokens):
            self._known_ids = np.frombuffer(self.tokens.tobytes(), np.int32)
        return self._known_ids

    @property
    def known(self) -> int:
        return len(self.tokens)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def max_reuse_len(self) -> int | None:
        """Tokens whose cached KV is of use: those before the first wanted prompt
        log-probability."""
        if self.prompt_logprobs is None or len(self.prompt_logprobs) == self.prompt_len:
            return None
        return len(self.prompt_logprobs) - 1

    @property
    def wants_draws(self) -> bool:
        """Whether an answer is wanted, and not only that the prompt is computed."""
        return self.want_limit > self.prompt_len

    @property
    def num_wanted(self) -> int:
        """Tokens this request could put into a step now.

        Zero while the draw still on the device is certainly its last one.
        """
        total = len(self.tokens) + self.pending
        if total >= self.want_limit and self.pending:
            return 0
        return total - self.computed

    @property
    def num_undrawn(self) -> int:
        """Tokens that could still be drawn, beside the draws on the device; at least the one that a
        computed token brings, wanted or not."""
        return max(1, self.want_limit - len(self.tokens) - self.pending)

    @property
    def draws_alone(self) -> bool:
        """Whether its tokens can be drawn without the host, one after the other."""
        sampling = self.sampling
        wants_more = sampling.logprobs is not None or sampling.embedding or sampling.adjusts_logits
        return self.grammar is None and not wants_more

    @property
    def is_late(self) -> bool:
        """Of a request that wants one token: whether a step now would only wait for the mask of
        its draw."""
        grammar = self.grammar
        return grammar is not None and not self.pending and not grammar.settled(self.num_generated)

    def skip_draw(self) -> None:
        """A step has run without drawing a token for it: draw the same one again. What later steps
        did with the draw that there was not counts for nothing."""
        self.void_step_id = self.last_step_id
        self.pending = 0
        self.computed = self.known - 1

    @property
    def live(self) -> bool:
        return self.finish is None
