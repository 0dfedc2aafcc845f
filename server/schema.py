"""The request bodies of the OpenAI-style routes.

Every field listed is either honoured or, in `IgnoredFields`, known to change nothing here; any
other field is refused. Bounds that `jaxsgl.interface.check_sampling` holds are not repeated here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from jaxsgl.answer_forms import GrammarFields
from jaxsgl.interface import MAX_TOP_LOGPROBS
from server.messages import MAX_TOOLS, Message, Tool, ToolChoice

MAX_CHOICES = 128
"""Answers that one HTTP request may ask for, over all its prompts."""
MAX_MESSAGES = 1024


class IgnoredFields(GrammarFields, frozen=True, kw_only=True):
    """Parts of OpenAI's API about accounts, storage and billing: accepted, and without effect."""

    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, str] | None = None


class StreamOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    """One more event before the end, with the usage of the whole request."""
    continuous_usage_stats: bool | None = None
    """The usage so far in every event."""
    include_obfuscation: bool | None = None
    """Accepted; events are never padded."""


class GenerationBody(IgnoredFields, frozen=True, kw_only=True):
    """What chat and text completions have in common. null is the same as absent throughout."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    """SGLang's name of the same."""
    ignore_eos: bool | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    """The answer contains none of these texts."""
    skip_special_tokens: bool | None = None
    strict_complete: bool | None = None
    """With a grammar: lead the answer to an end of it before `max_tokens` cut it short."""
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    """Answers per prompt."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    """Prefixes are shared only between requests of equal salt."""
    timeout_s: float | None = None
    """Seconds that the whole answer may take; when they are over it ends with a 504."""


class ChatBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    """The newer name of `max_tokens`; wins where both are given."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    """auto where there are tools."""
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    """Whether the prompt ends with the beginning of an answer; true unless the last message is
    continued."""
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """A variable of chat templates; none also turns the reasoning off."""
    separate_reasoning: bool | None = None
    """False: leave the reasoning in the content."""


class CompletionBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/completions"""

    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    """A text, a list of token ids, or a list of either."""
    logprobs: int | None = None
    echo: bool | None = None
    """Begin each answer with its prompt."""
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    """Of so many answers per prompt, keep the `n` with the likeliest tokens."""
    return_token_ids: bool | None = None
    """vLLM's: choices have the ids of their tokens, and of their prompt's."""
    suffix: str | None = None
    """Refused: no model here fills gaps."""
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    """0 goes with `echo` alone."""


CHAT_DECODER = msgspec.json.Decoder(ChatBody)
COMPLETION_DECODER = msgspec.json.Decoder(CompletionBody)
