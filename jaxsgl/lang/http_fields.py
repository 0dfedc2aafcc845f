"""Sampling parameters as fields of OpenAI's request bodies. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from jaxsgl.interface import (
    ChoiceGrammar,
    EbnfGrammar,
    GrammarSpec,
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
    SamplingParams,
)
from jaxsgl.lang.errors import ProgramError

_OPENAI = frozenset(
    "max_tokens temperature top_p presence_penalty frequency_penalty logit_bias seed stop".split()
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What an endpoint takes beyond OpenAI's own fields."""

    is_jaxsgl: bool

    def fields(self, sampling: SamplingParams, is_chat: bool) -> dict[str, Any]:
        """Raises ProgramError for what the endpoint would ignore or refuse."""
        given: dict[str, Any] = msgspec.to_builtins(
            msgspec.structs.replace(sampling, grammar=None, logprobs=None), str_keys=True
        )
        if not self.is_jaxsgl:
            given.pop("strict_complete", None)  # a help, not a promise
            unknown = sorted(given.keys() - _OPENAI)
            if unknown:
                raise ProgramError(f"gen: OpenAI endpoints have no {unknown[0]}")
        if sampling.logprobs is not None and is_chat:
            given |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        elif sampling.logprobs is not None:
            given["logprobs"] = sampling.logprobs
        if sampling.grammar is not None:
            given |= self._form(sampling.grammar, is_chat)
        return given

    def _form(self, grammar: GrammarSpec, is_chat: bool) -> dict[str, Any]:
        match grammar:
            case JsonSchemaGrammar(schema) if self.is_jaxsgl or is_chat:
                named = {"name": "answer", "schema": msgspec.Raw(schema.encode())}
                return {"response_format": {"type": "json_schema", "json_schema": named}}
            case JsonObjectGrammar() if self.is_jaxsgl or is_chat:
                return {"response_format": {"type": "json_object"}}
            case RegexGrammar(pattern) if self.is_jaxsgl:
                return {"regex": pattern}
            case LarkGrammar(text, "start") if self.is_jaxsgl:
                return {"lark": text}
            case EbnfGrammar(text, "root") if self.is_jaxsgl:
                return {"ebnf": text}
            case ChoiceGrammar(choices) if self.is_jaxsgl:
                return {"choice": list(choices)}
            case _:
                kind = type(grammar).__name__.removesuffix("Grammar")
                raise ProgramError(
                    f"gen: this endpoint cannot hold an answer to a {kind}; OpenAI endpoints know "
                    "json_schema in conversations, jaxsgl servers every form"
                )
