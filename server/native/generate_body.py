"""The body of /generate: one prompt or many, every other field for all of them or for each."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from jaxsgl.answer_forms import GrammarFields
from jaxsgl.interface import MAX_HOLD_S, MAX_TOP_LOGPROBS
from server.schema import MAX_CHOICES

MAX_ID_LEN = 128

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
RequestName = Annotated[str, Meta(min_length=1, max_length=MAX_ID_LEN)]
StartLen = Annotated[int, Meta(ge=-1, lt=2**31)]
NumTop = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]
Namespace = Annotated[str, Meta(max_length=256)]

TokenIdBiases = Annotated[
    dict[int, float],
    Meta(extra_json_schema={"propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"}}),
]


class NativeSampling(GrammarFields, frozen=True, kw_only=True):
    """`sampling_params`. null is the same as absent throughout."""

    max_new_tokens: Annotated[int, Meta(ge=0)] | None = 128
    """0 computes and caches the prompt, and that is all; null is as many as fit."""
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: TokenIdBiases | None = None
    sampling_seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    strict_complete: bool | None = None
    spaces_between_special_tokens: bool | None = None
    """Accepted, and without effect: no token is written with a space of its own."""


class GenerateBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /generate. `text` or `input_ids`; a list of either is a batch, and what is a list beside
    it has an entry for each prompt."""

    text: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_CHOICES)] | None = None
    input_ids: Annotated[list[TokenId | list[TokenId]], Meta(min_length=1)] | None = None
    sampling_params: NativeSampling | list[NativeSampling] | None = None
    rid: RequestName | list[RequestName] | None = None
    """Names the request for /abort_request; the n-th answer of one prompt is `rid-n`."""
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: StartLen | list[StartLen] | None = None
    """Log-probabilities of the prompt from this position on; -1, the default, is none of them."""
    top_logprobs_num: NumTop | list[NumTop] | None = None
    return_text_in_logprobs: bool | None = None
    stream: bool | None = None
    """Every event holds the answer up to then."""
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: Namespace | None = None
    """Prefixes are shared only between requests of equal salt."""
    extra_key: Namespace | None = None
    """The same."""
    timeout_s: float | None = None
    hold_s: Annotated[float, Meta(gt=0, le=MAX_HOLD_S)] | None = None
    """With `max_new_tokens` 0: keep what is cached of the prompt from eviction for so long, or
    until its `rid` is aborted."""


GENERATE_DECODER = msgspec.json.Decoder(GenerateBody)
