"""The arguments of one call of the engine, as requests. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, cast

import msgspec

from jaxsgl.interface import (
    GenerateRequest,
    InvalidRequest,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from jaxsgl.offline.sampling import parse_sampling

type Sampling = SamplingParams | Mapping[str, Any]


class CallOptions(TypedDict, total=False):
    """Arguments of a call that few callers need."""

    return_logprob: bool
    """Whether answers come with log-probabilities."""
    logprob_start_len: int
    """With them: the first prompt token whose log-probability is wanted; -1, the default, is
    none."""
    top_logprobs_num: int
    """With them: how many alternatives per position."""
    rid: str | Sequence[str]
    """Request ids, by which requests can be aborted; made up if not given."""
    priority: int
    """Larger is more urgent, under the `priority` schedule policy."""
    hold_s: float
    """With 0 new tokens: keep the prompt's cached pages from eviction for so long, or until its
    `rid` is aborted."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Which log-probabilities a call asks for."""

    wanted: bool = False
    start_len: int = -1
    """First prompt token whose log-probability is wanted; -1 for none of the prompt's."""
    num_top: int = 0

    def apply(self, sampling: SamplingParams) -> SamplingParams:
        if not self.wanted:
            return sampling
        return msgspec.structs.replace(
            sampling,
            logprobs=self.num_top,
            prompt_logprobs=self.start_len >= 0,
            prompt_logprobs_from=max(0, self.start_len),
        )


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of `generate` asks for."""

    requests: list[GenerateRequest]
    logprobs: Logprobs
    is_list: bool
    """Whether the caller gave a list, and gets one."""


def make_call(
    prompt: str | Sequence[str] | None,
    sampling_params: Sampling | Sequence[Sampling] | None,
    input_ids: Sequence[int] | Sequence[Sequence[int]] | None,
    **options: Unpack[CallOptions],
) -> Call:
    """One request per prompt.

    Raises InvalidRequest if there are not as many sampling parameters or ids as prompts, or a
    parameter is not supported.
    """
    logprobs = Logprobs(
        options.get("return_logprob", False),
        options.get("logprob_start_len", -1),
        options.get("top_logprobs_num", 0),
    )
    if logprobs.start_len < -1:
        raise InvalidRequest("logprob_start_len must be at least -1", param="logprob_start_len")
    unknown = options.keys() - CallOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"generate() has no argument {min(unknown)!r}")
    prompts, is_list = _prompts(prompt, input_ids)
    count = len(prompts)
    if sampling_params is None or isinstance(sampling_params, SamplingParams | Mapping):
        samplings = [parse_sampling(sampling_params)] * count
    else:
        samplings = [parse_sampling(params) for params in sampling_params]
    rid = options.get("rid") or [secrets.token_hex(16) for _ in prompts]
    ids = [rid] if isinstance(rid, str) else rid
    for name, values in (("sampling_params", samplings), ("rid", ids)):
        if len(values) != count:
            raise InvalidRequest(f"{len(values)} {name} for {count} prompts", param=name)
    requests = [
        GenerateRequest(
            request_id=request_id,
            prompt=prompt,
            sampling=logprobs.apply(sampling),
            priority=options.get("priority", 0),
            hold_s=options.get("hold_s"),
        )
        for request_id, prompt, sampling in zip(ids, prompts, samplings, strict=True)
    ]
    return Call(requests, logprobs, is_list)


def _prompts(
    prompt: str | Sequence[str] | None,
    input_ids: Sequence[int] | Sequence[Sequence[int]] | None,
) -> tuple[list[Prompt], bool]:
    """The prompts, and whether they were given as a list."""
    if (prompt is None) == (input_ids is None):
        raise InvalidRequest("give either prompt or input_ids", param="prompt")
    if input_ids is not None:
        is_list = not len(input_ids) or isinstance(input_ids[0], Sequence)
        id_lists = cast(Sequence[Sequence[int]], input_ids if is_list else [input_ids])
        if not all(isinstance(ids, Sequence) for ids in id_lists):
            raise InvalidRequest("input_ids must be token ids or lists of them", param="input_ids")
        return [TokenPrompt(list(ids)) for ids in id_lists], is_list
    texts = [prompt] if isinstance(prompt, str) else list(prompt or ())
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("prompt must be a text or a list of texts", param="prompt")
    return [TextPrompt(text) for text in texts], not isinstance(prompt, str)
