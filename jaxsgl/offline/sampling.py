"""Sampling parameters as SGLang's users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from jaxsgl.answer_forms import GrammarFields, grammar_of
from jaxsgl.interface import GrammarSpec, InvalidRequest, SamplingParams

DEFAULT_MAX_NEW_TOKENS = 128
"""Of parameters that say nothing about it, as SGLang has it."""

_FIELDS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
    "no_stop_trim": "include_stop",
} | {
    name: name
    for name in (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "stop",
        "stop_token_ids",
        "stop_regex",
        "allowed_token_ids",
        "bad_words",
        "skip_special_tokens",
        "ignore_eos",
        "strict_complete",
    )
}


_GRAMMAR_FIELDS = GrammarFields.__struct_fields__


def parse_sampling(params: SamplingParams | Mapping[str, Any] | None) -> SamplingParams:
    """SamplingParams are taken as they are; a mapping has the names of `_FIELDS` and of
    `GrammarFields`, or `n`: 1.

    Raises InvalidRequest for an unknown name or a value of the wrong type. Bounds are not checked.
    """
    if isinstance(params, SamplingParams):
        return params
    given = dict(params or {})
    if given.pop("n", 1) != 1:
        raise InvalidRequest("n must be 1: give the prompt several times instead", param="n")
    grammar_fields = {name: given.pop(name) for name in _GRAMMAR_FIELDS if name in given}
    unknown = sorted(given.keys() - _FIELDS.keys())
    if unknown:
        known = ", ".join((*_FIELDS, *_GRAMMAR_FIELDS))
        raise InvalidRequest(
            f"sampling_params: {unknown[0]!r} is not supported; known: {known}", param=unknown[0]
        )
    values = {"max_new_tokens": DEFAULT_MAX_NEW_TOKENS} | given
    for name in ("stop", "stop_regex"):
        if isinstance(values.get(name), str):
            values[name] = [values[name]]
    for name in ("stop", "stop_regex", "stop_token_ids", "bad_words", "logit_bias"):
        if values.get(name, ...) is None:
            del values[name]
    renamed: dict[str, Any] = {_FIELDS[name]: value for name, value in values.items()}
    renamed["grammar"] = _parse_grammar(grammar_fields)
    try:
        # str_keys: SGLang's logit_bias has its token ids in JSON's way, as strings.
        return msgspec.convert(renamed, SamplingParams, str_keys=True)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"sampling_params: {error}") from None


def _parse_grammar(fields: Mapping[str, Any]) -> GrammarSpec | None:
    try:
        # By way of JSON, which keeps the order of a schema's properties.
        return grammar_of(msgspec.json.decode(msgspec.json.encode(fields), type=GrammarFields))
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidRequest(f"sampling_params: {error}") from None
