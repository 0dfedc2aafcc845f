"""What the front checks and fills in before a request goes to a replica. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from jaxsgl.actors.messages import Admit, Ready
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.pattern_dfa import pattern_dfa
from jaxsgl.interface import GenerateRequest, InvalidRequest


class SeedStream:
    """Seeds for requests that bring none: the n-th depends on `random_seed` and n alone."""

    def __init__(self, random_seed: int) -> None:
        self._random_seed = random_seed
        self._count = 0

    def next(self) -> int:
        """0 <= seed < 2**63"""
        name = f"{self._random_seed}/{self._count}".encode()
        self._count += 1
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def admission(
    request: GenerateRequest, prompt_ids: list[int], param: str, seed: int, ready: Ready
) -> Admit:
    """The request as the replica that said `ready` takes it: `seed` and `max_tokens` are set.

    Raises InvalidRequest if prompt and answer cannot fit, or an id is not a token of the model;
    `param` names the prompt in the complaint.
    """
    sampling = request.sampling
    vocab_size = ready.model.vocab_size
    _check_ids("logit_bias", sampling.logit_bias, vocab_size)
    _check_ids("stop_token_ids", sampling.stop_token_ids, vocab_size)
    _check_ids("allowed_token_ids", sampling.allowed_token_ids or (), vocab_size)
    _check_patterns(sampling.stop_regex)
    room_len = min(ready.model.context_len, ready.max_prompt_len + 1)
    max_tokens = sampling.max_tokens
    if max_tokens is None:
        max_tokens = max(1, room_len - len(prompt_ids))
    if sampling.min_tokens > max_tokens:  # known only now, if it was left open
        raise InvalidRequest("min_tokens must be between 0 and max_tokens", param="min_tokens")
    num_new = max(1, max_tokens)  # also where none is wanted there must be room for a draw
    if len(prompt_ids) + num_new > room_len:
        raise InvalidRequest(
            f"at most {room_len} tokens fit: {len(prompt_ids)} in {param} and {num_new} to "
            "generate are too many",
            param=param,
            code="context_length_exceeded",
        )
    return Admit(
        request.request_id,
        prompt_ids,
        msgspec.structs.replace(
            sampling,
            max_tokens=max_tokens,
            seed=seed if sampling.seed is None else sampling.seed,
        ),
        request.cache_namespace,
        request.priority,
        request.timeout_s,
        tenant=request.tenant,
        hold_s=request.hold_s,
    )


def _check_patterns(patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            pattern_dfa(pattern)
        except GrammarError as error:
            raise InvalidRequest(f"stop_regex: {error}", param="stop_regex") from None


def _check_ids(param: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"{param}: {token_id} is not a token of the model", param=param)
