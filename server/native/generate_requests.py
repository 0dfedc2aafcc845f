"""A body of /generate turned into what the engine is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from jaxsgl.answer_forms import grammar_of
from jaxsgl.interface import (
    GenerateRequest,
    InvalidRequest,
    Prompt,
    SamplingParams,
    ServedEngine,
    TextPrompt,
    TokenPrompt,
    check_hold,
    check_sampling,
)
from server.native.generate_body import GenerateBody, NativeSampling
from server.requests import check_token_ids, nth_choice
from server.schema import MAX_CHOICES

_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "ignore_eos",
    "strict_complete",
)
"""Named alike in a body and in SamplingParams."""


@dataclass(frozen=True, slots=True)
class NativeRequest:
    """One answer that is wanted."""

    request: GenerateRequest
    scored_ids: list[int] | None = None
    """The prompt tokens whose log-probabilities are wanted."""


async def native_requests(
    body: GenerateBody, engine: ServedEngine, rid: str
) -> list[NativeRequest]:
    """`n` requests per prompt, those of one prompt together; `rid` is for a body that has none.

    Raises InvalidRequest.
    """
    prompts = _prompts(body)
    is_batch = _is_batch(body)
    num_prompts = len(prompts)
    samplings = _for_each("sampling_params", body.sampling_params, num_prompts, NativeSampling())
    logprobs = _for_each("return_logprob", body.return_logprob, num_prompts, False)
    starts = _for_each("logprob_start_len", body.logprob_start_len, num_prompts, -1)
    nums_top = _for_each("top_logprobs_num", body.top_logprobs_num, num_prompts, 0)
    names = _names(body.rid or rid, num_prompts, is_batch)
    if sum(sampling.n or 1 for sampling in samplings) > MAX_CHOICES:
        raise InvalidRequest(f"n times the number of prompts exceeds {MAX_CHOICES}", param="n")
    if body.cache_salt is not None and body.extra_key is not None:
        raise InvalidRequest("cache_salt and extra_key exclude each other", param="extra_key")
    requests: list[NativeRequest] = []
    for index, prompt in enumerate(prompts):
        given = samplings[index]
        wanted = {"logprobs": nums_top[index] if logprobs[index] else None}
        scored_ids = None
        if logprobs[index] and starts[index] >= 0:
            ids = await engine.encode(prompt)
            if starts[index] > len(ids):
                message = f"logprob_start_len is beyond the {len(ids)} tokens of the prompt"
                raise InvalidRequest(message, param="logprob_start_len")
            prompt, scored_ids = TokenPrompt(ids), ids[starts[index] :]
            wanted |= {"prompt_logprobs": True, "prompt_logprobs_from": starts[index]}
        sampling = _sampling(given, engine, wanted)
        for choice in range(given.n or 1):
            name = names[index] if (given.n or 1) == 1 else f"{names[index]}-{choice}"
            request = GenerateRequest(
                request_id=name,
                prompt=prompt,
                sampling=nth_choice(sampling, choice),
                cache_namespace=body.cache_salt or body.extra_key or "",
                priority=body.priority or 0,
                timeout_s=body.timeout_s,
                hold_s=body.hold_s,
            )
            check_hold(request)
            requests.append(NativeRequest(request, scored_ids))
    return requests


def wants_list(body: GenerateBody, requests: Sequence[NativeRequest]) -> bool:
    """Whether the answer is a list, also of one."""
    return _is_batch(body) or len(requests) > 1


def _is_batch(body: GenerateBody) -> bool:
    return isinstance(body.text, list) or (
        body.input_ids is not None and isinstance(body.input_ids[0], list)
    )


def _prompts(body: GenerateBody) -> list[Prompt]:
    if (body.text is None) == (body.input_ids is None):
        raise InvalidRequest("Send either text or input_ids", param="text")
    if isinstance(body.text, str):
        return [TextPrompt(body.text)]
    if body.text is not None:
        return [TextPrompt(text) for text in body.text]
    assert body.input_ids is not None
    ids, lists = one_or_many(body.input_ids, "input_ids")
    return [TokenPrompt(each) for each in lists or [ids]]


def one_or_many(items: list[int | list[int]], param: str) -> tuple[list[int], list[list[int]]]:
    """The ids of one prompt, or those of several; one of the two is empty."""
    kinds = set(map(type, items))
    if len(kinds) > 1:
        raise InvalidRequest(f"{param} must hold only token ids or only lists of them", param=param)
    if list not in kinds:
        return cast(list[int], items), []
    if len(items) > MAX_CHOICES:
        raise InvalidRequest(f"{param} has more than {MAX_CHOICES} entries", param=param)
    return [], cast(list[list[int]], items)


def _for_each[T](param: str, value: T | list[T] | None, num_prompts: int, default: T) -> list[T]:
    """The value for each prompt."""
    if value is None:
        return [default] * num_prompts
    if isinstance(value, list):
        values = cast("list[T]", value)
        _check_length(param, len(values), num_prompts)
        return values
    return [value] * num_prompts


def _names(rid: str | list[str], num_prompts: int, is_batch: bool) -> list[str]:
    if isinstance(rid, str):
        return [f"{rid}-{index}" for index in range(num_prompts)] if is_batch else [rid]
    _check_length("rid", len(rid), num_prompts)
    if len(set(rid)) < len(rid):
        raise InvalidRequest("rid names two prompts alike", param="rid")
    return rid


def _check_length(param: str, length: int, num_prompts: int) -> None:
    if length != num_prompts:
        message = f"{param} has {length} entries for {num_prompts} prompts"
        raise InvalidRequest(message, param=param)


def _sampling(
    given: NativeSampling, engine: ServedEngine, wanted: dict[str, Any]
) -> SamplingParams:
    fields: dict[str, Any] = {
        name: value for name in _SAMPLING_FIELDS if (value := getattr(given, name)) is not None
    }
    sampling = SamplingParams(
        max_tokens=given.max_new_tokens,
        min_tokens=given.min_new_tokens or 0,
        seed=given.sampling_seed,
        stop=(given.stop,) if isinstance(given.stop, str) else tuple(given.stop or ()),
        stop_token_ids=tuple(given.stop_token_ids or ()),
        grammar=grammar_of(given),
        **fields,
        **wanted,
    )
    check_sampling(sampling)
    check_token_ids("logit_bias", sampling.logit_bias, engine.model)
    check_token_ids("stop_token_ids", sampling.stop_token_ids, engine.model)
    return sampling
