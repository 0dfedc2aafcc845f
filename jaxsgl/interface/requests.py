"""What is asked of an engine."""

from __future__ import annotations

from typing import Any

import msgspec

from jaxsgl.interface.errors import InvalidRequest
from jaxsgl.interface.grammars import GrammarSpec

MAX_TOP_LOGPROBS = 20
"""Most alternatives per position that a request may ask for (OpenAI's limit)."""
MAX_ALLOWED_IDS = 1 << 18
MAX_HOLD_S = 600.0
"""Longest time that a request may have its prompt held."""
MIN_REPETITION_PENALTY = 1e-6
"""Logits are divided by it, and stay finite."""


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

    @property
    def adjusts_logits(self) -> bool:
        """Whether draws depend on what was drawn before, or on ids of its own."""
        has_penalties = (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )
        return has_penalties or bool(self.logit_bias) or self.min_tokens > 0


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
    hold_s: float | None = None
    """With `max_tokens` 0: once the prompt is computed, keep what is cached of it from eviction for
    so long, or until `EngineClient.let_go`. It is given up earlier when requests that run want its
    pages, or too many others are held, and is gone with the cache when that is flushed or lost."""


def check_hold(request: GenerateRequest) -> None:
    """Raise InvalidRequest if `hold_s` is out of bounds or makes no sense."""
    if request.hold_s is None:
        return
    if not 0.0 < request.hold_s <= MAX_HOLD_S:  # false for NaN
        message = f"hold_s must be above 0 and at most {MAX_HOLD_S:g}"
        raise InvalidRequest(message, param="hold_s")
    if request.sampling.max_tokens != 0:
        message = "hold_s is for prompts that are only computed: it needs 0 new tokens"
        raise InvalidRequest(message, param="hold_s")


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
