"""Request bodies turned into what the engine is asked: one GenerateRequest per choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from jaxsgl.answer_forms import grammar_of
from jaxsgl.interface import (
    ChatPrompt,
    GenerateRequest,
    GrammarSpec,
    InvalidRequest,
    ModelInfo,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    check_sampling,
)
from server import reasoning
from server.errors import RequestRefused
from server.messages import template_messages
from server.schema import MAX_CHOICES, ChatBody, CompletionBody, GenerationBody
from server.tools.plan import ToolPlan

COMPLETION_MAX_TOKENS = 16
"""Tokens of a text completion that does not say how many it wants, as OpenAI has it."""
ANY_MODEL = "default"
"""A name for the served model, whichever it is."""

_SAMPLING_FIELDS = (
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "ignore_eos",
    "skip_special_tokens",
    "strict_complete",
)
"""Named alike in a body and in SamplingParams."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What an answer is held to, and from where on."""

    grammar: GrammarSpec | None = None
    after: str | None = None
    repeats: bool = False


def chat_prompt(body: ChatBody, model: ModelInfo, tools: ToolPlan) -> ChatPrompt:
    """Raises InvalidRequest."""
    if not model.has_chat_template:
        raise InvalidRequest("This model has no chat template; use /v1/completions")
    continues = bool(body.continue_final_message)
    if continues and body.add_generation_prompt:
        message = "The last message is continued, or another one begins: not both"
        raise InvalidRequest(message, param="add_generation_prompt")
    generates = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    variables = dict(body.chat_template_kwargs or {})
    if variables.keys() & {"tools", "documents"}:
        raise InvalidRequest("tools have a field of their own", param="chat_template_kwargs")
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
        if body.reasoning_effort == "none":
            variables.setdefault("enable_thinking", False)
    return ChatPrompt(
        template_messages(body.messages),
        generates,
        continues,
        tools.shown or None,
        variables,
    )


def answer_form(
    tools: ToolPlan, grammar: GrammarSpec | None, opened: bool | None, *, reasons: bool
) -> AnswerForm:
    """Tools bring a grammar of their own. Behind reasoning the grammar begins when that has
    ended."""
    if tools.grammar is not None and tools.grammar_after is not None:
        return AnswerForm(tools.grammar, tools.grammar_after, repeats=True)
    grammar = tools.grammar or grammar
    if grammar is not None and reasons and opened is not False:
        return AnswerForm(grammar, reasoning.END)
    return AnswerForm(grammar)


def chat_requests(
    body: ChatBody,
    reply_id: str,
    model: ModelInfo,
    prompt: Prompt,
    tools: ToolPlan,
    form: AnswerForm,
) -> list[GenerateRequest]:
    """`n` requests with the same prompt. Raises InvalidRequest or, for another model, a 404."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if body.max_tokens == 0:
        raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
    sampling = _sampling(
        body,
        model,
        form,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        **({"skip_special_tokens": False} if tools.control_tokens else {}),
    )
    return _fan_out(body, reply_id, [prompt], sampling, body.n or 1)


def completion_requests(
    body: CompletionBody, reply_id: str, model: ModelInfo, prompts: Sequence[Prompt]
) -> list[GenerateRequest]:
    """The requests of each prompt, together. Raises as `chat_requests`."""
    if body.suffix:
        raise InvalidRequest("suffix is not supported: no model here fills gaps", param="suffix")
    n = body.n or 1
    best_of = body.best_of or n
    if best_of < n:
        raise InvalidRequest("best_of must be at least n", param="best_of")
    if best_of > n and body.stream:
        raise InvalidRequest("best_of answers cannot be streamed", param="best_of")
    max_tokens = COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens must be at least 1 without echo", param="max_tokens")
    logprobs = body.logprobs
    if best_of > n and logprobs is None:
        logprobs = 0
    sampling = _sampling(
        body,
        model,
        AnswerForm(grammar_of(body)),
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
    )
    return _fan_out(body, reply_id, prompts, sampling, best_of)


def check_model_name(name: str | None, served: str) -> None:
    """Raise a 404 unless `name` is absent, "default" or `served`."""
    if name not in (None, ANY_MODEL, served):
        raise RequestRefused(
            404,
            f"The model {name[:100]!r} does not exist; the one served here is {served!r}",
            param="model",
            code="model_not_found",
        )


def _sampling(
    body: GenerationBody, model: ModelInfo, form: AnswerForm, **values: Any
) -> SamplingParams:
    check_model_name(body.model, model.name)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    given: dict[str, Any] = {
        name: value for name in _SAMPLING_FIELDS if (value := getattr(body, name)) is not None
    }
    given |= {
        "seed": body.seed,
        "stop": _texts(body.stop),
        "stop_token_ids": tuple(body.stop_token_ids or ()),
        "stop_regex": _texts(body.stop_regex),
        "include_stop": bool(body.include_stop_str_in_output or body.no_stop_trim),
        "bad_words": tuple(body.bad_words or ()),
        "grammar": form.grammar,
        "grammar_after": form.after,
        "grammar_repeats": form.repeats,
    }
    if body.allowed_token_ids is not None:
        given["allowed_token_ids"] = tuple(body.allowed_token_ids)
    sampling = SamplingParams(**(given | values))
    check_sampling(sampling)
    check_token_ids("logit_bias", sampling.logit_bias, model)
    check_token_ids("stop_token_ids", sampling.stop_token_ids, model)
    check_token_ids("allowed_token_ids", sampling.allowed_token_ids or (), model)
    return sampling


def _texts(value: str | list[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def check_token_ids(param: str, token_ids: Iterable[int], model: ModelInfo) -> None:
    """Raise InvalidRequest for an id that is no token of the model."""
    for token_id in token_ids:
        if not 0 <= token_id < model.vocab_size:
            raise InvalidRequest(
                f"{param} names token {token_id}, but the ids are 0 to {model.vocab_size - 1}",
                param=param,
            )


def completion_prompts(
    prompt: str | list[str | int | list[int]], param: str = "prompt"
) -> list[TextPrompt | TokenPrompt]:
    """Raises InvalidRequest for a list of several kinds; `param` is the field that holds it."""
    if isinstance(prompt, str):
        return [TextPrompt(prompt)]
    kinds = set(map(type, prompt))  # one look at each of what may be a hundred thousand ids
    if kinds == {str}:
        return [TextPrompt(text) for text in cast(list[str], prompt)]
    if kinds == {int}:
        return [TokenPrompt(cast(list[int], prompt), param)]
    if kinds == {list}:
        return [TokenPrompt(ids, param) for ids in cast(list[list[int]], prompt)]
    raise InvalidRequest(
        f"{param} must hold only texts, only token ids or only lists of token ids", param=param
    )


def _fan_out(
    body: GenerationBody,
    reply_id: str,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    n: int,
) -> list[GenerateRequest]:
    check_choices(n * len(prompts))
    per_choice = [nth_choice(sampling, choice) for choice in range(n)]
    return [
        GenerateRequest(
            request_id=f"{reply_id}-{i * n + choice}",
            prompt=prompt,
            sampling=per_choice[choice],
            cache_namespace=body.cache_salt or "",
            priority=body.priority or 0,
            timeout_s=body.timeout_s,
        )
        for i, prompt in enumerate(prompts)
        for choice in range(n)
    ]


def check_choices(num_choices: int) -> None:
    """Raises InvalidRequest if that is more than one HTTP request may ask for."""
    if num_choices > MAX_CHOICES:
        raise InvalidRequest(f"n times the number of prompts exceeds {MAX_CHOICES}", param="n")


def nth_choice(sampling: SamplingParams, choice: int) -> SamplingParams:
    """Choice k draws with seed + k: the choices of one prompt differ, and each can be repeated."""
    if sampling.seed is None or choice == 0:
        return sampling
    seed = (sampling.seed + choice + 2**63) % 2**64 - 2**63
    return msgspec.structs.replace(sampling, seed=seed)
