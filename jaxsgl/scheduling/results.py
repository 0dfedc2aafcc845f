"""Turns the draws of a step into what each request gains from them: tokens, text,
log-probabilities, an end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxsgl.interface import Finish, TokenLogprob
from jaxsgl.scheduling.outputs import RowOutput
from jaxsgl.scheduling.request import Request
from jaxsgl.step import SAMPLE, StepPlan, StepResult

_TINY = 1e-30
"""Shorter than this no vector is scaled to length 1."""
NUMERICAL_ERROR = "the model produced numbers that are not finite"


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """What each token adds to a text, for requests that want control tokens written or not."""

    token_bytes: list[bytes]
    """Empty where no tokenizer is loaded."""
    control_texts: Mapping[int, bytes]

    def of(self, token_id: int, request: Request) -> bytes:
        if not request.sampling.skip_special_tokens and token_id in self.control_texts:
            return self.control_texts[token_id]
        return self.token_bytes[token_id] if token_id < len(self.token_bytes) else b""


class StepReader:
    """Reads one StepResult row by row."""

    def __init__(self, plan: StepPlan, result: StepResult, texts: TokenTexts) -> None:
        # Python lists: indexing an array element by element costs ten times as much.
        self._logit_start = plan.logit_start.tolist()
        self._target = plan.logit_target.tolist()
        self._token_ids = result.token_ids.tolist()
        self._valid = result.valid.tolist()
        self._skipped = None if result.skipped is None else result.skipped.tolist()
        self._result = result
        self._texts = texts

    def read(self, row: int, request: Request) -> RowOutput | None:
        """Advance `request` by what its row brought; None if that is nothing to tell.

        Sets `request.finish` if this ends it. A request that has ended already gains nothing.
        """
        begin, end = self._logit_start[row], self._logit_start[row + 1]
        if begin == end or not request.live:
            return None
        new_ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        embedding: bytes | None = None
        data = b""
        for k in range(begin, end):
            if not request.live:
                break  # what a chain drew behind the end
            if self._skipped is not None and self._skipped[k]:
                request.skip_draw()
                finish_by_grammar(request)
            elif not self._valid[k]:
                request.finish = Finish("error", message=NUMERICAL_ERROR)
            elif self._target[k] == SAMPLE and not request.wants_draws:
                request.pending -= 1
                request.finish = Finish("length")
                if request.sampling.embedding:
                    embedding = self._embedding(k)
            elif self._target[k] == SAMPLE:
                request.pending -= 1
                new_ids.append(self._token_ids[k])
                if request.sampling.logprobs is not None:
                    logprobs.append(self._logprob(k, request.sampling.logprobs))
                data += self._accept(request, new_ids[-1])
            else:
                self._add_prompt_logprob(k, request)
        if not request.live:
            data += held_text(request)
        if not new_ids and request.live:
            return None
        return row_output(request, new_ids, data, logprobs or None, embedding)

    def _accept(self, request: Request, token_id: int) -> bytes:
        """Append a draw to the request; return the text it releases."""
        data = b""
        request.tokens.append(token_id)
        may_stop = request.num_generated >= request.sampling.min_tokens
        if may_stop and token_id in request.end_token_ids:
            request.finish = Finish("stop", matched=token_id)
            if request.sampling.include_stop:
                data = held_text(request) + self._texts.of(token_id, request)
        else:
            data = released_text(token_id, request, self._texts, may_stop)
        if request.live:
            finish_by_grammar(request)
        if request.live and request.known >= request.want_limit:
            request.finish = Finish("length")
        return data

    def _add_prompt_logprob(self, k: int, request: Request) -> None:
        assert request.prompt_logprobs is not None
        if len(request.prompt_logprobs) < request.prompt_len:
            num_top = request.sampling.logprobs or 0
            request.prompt_logprobs.append(self._logprob(k, num_top))

    def _embedding(self, k: int) -> bytes:
        hidden = self._result.hidden
        assert hidden is not None
        return (hidden[k] / max(float(np.sqrt(np.square(hidden[k]).sum())), _TINY)).tobytes()

    def _logprob(self, k: int, num_top: int) -> TokenLogprob:
        result = self._result
        assert result.logprobs is not None
        top: list[tuple[int, float]] = []
        if num_top:
            assert result.top_ids is not None and result.top_logprobs is not None
            ids = result.top_ids[k, :num_top].tolist()
            values = result.top_logprobs[k, :num_top].tolist()
            # A grammar may leave fewer tokens than were asked for.
            top = [pair for pair in zip(ids, values, strict=True) if pair[1] > -math.inf]
        return TokenLogprob(self._token_ids[k], float(result.logprobs[k]), top)


def released_text(token_id: int, request: Request, texts: TokenTexts, may_stop: bool) -> bytes:
    """The text that a token releases; ends the request if it completes a stop string."""
    data = texts.of(token_id, request)
    if request.stop_matcher is None or not may_stop:
        return data
    data, matched = request.stop_matcher.feed(data)
    if matched is not None:
        request.finish = Finish("stop", matched=matched)
    return data


def resume(
    request: Request, answer_ids: Sequence[int], cached_tokens: int, texts: TokenTexts
) -> None:
    """Bring a new request to where it stood after `answer_ids`, which were told elsewhere.

    They are known like a prompt from now on, but count as generated, and what a stop string might
    still claim of their text is held back again.
    """
    for token_id in answer_ids:
        request.tokens.append(token_id)
        may_stop = request.num_generated >= request.sampling.min_tokens
        released_text(token_id, request, texts, may_stop)
    request.cached_tokens = cached_tokens
    request.prompt_logprobs = None  # told with the first of those tokens


def finish_by_grammar(request: Request) -> None:
    """End the request if its grammar leaves nothing to add to the answer, or no way on."""
    grammar = request.grammar
    if grammar is None:
        return
    if grammar.ended_len == request.num_generated:
        request.finish = Finish("stop")
    elif grammar.failed_len == request.num_generated:
        request.finish = Finish("error", message=grammar.failure)


def held_text(request: Request) -> bytes:
    """What a stop string might have claimed, now that the answer is over. Empty after a match."""
    return b"" if request.stop_matcher is None else request.stop_matcher.finish()


def row_output(
    request: Request,
    new_ids: list[int],
    data: bytes,
    logprobs: list[TokenLogprob] | None,
    embedding: bytes | None = None,
) -> RowOutput:
    prompt_logprobs = None
    if request.prompt_logprobs is not None and not request.emitted_prompt_logprobs:
        prompt_logprobs = request.prompt_logprobs
        request.emitted_prompt_logprobs = True
    return RowOutput(
        request_id=request.request_id,
        token_ids=new_ids,
        data=data,
        prompt_tokens=request.prompt_len,
        completion_tokens=request.num_generated,
        cached_tokens=max(0, request.cached_tokens),
        finish=request.finish,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        embedding=embedding,
    )
