"""A state's text on an engine in this process: token ids all the way."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Protocol, Self

import msgspec

from jaxsgl.interface import (
    EngineClient,
    EngineError,
    Finish,
    GenerateRequest,
    InvalidRequest,
    SamplingParams,
    TokenLogprob,
    TokenPrompt,
    Unavailable,
)
from jaxsgl.lang.backend import Answer, Choice, Release
from jaxsgl.lang.choosing import Scored, choose
from jaxsgl.lang.conversation import Conversation
from jaxsgl.lang.expressions import Role, SelectMethod
from jaxsgl.lang.prefix_hold import HOLD_S, PrefixHold
from jaxsgl.lang.transcript import TextTokenizer, Transcript, tokens_of
from jaxsgl.lang.turn_forms import ChatTokenizer, TurnForm, TurnForms
from jaxsgl.offline.calls import Logprobs
from jaxsgl.offline.gathering import gather_or_cancel
from jaxsgl.offline.outputs import Output
from jaxsgl.tokenizer import TokenizerError

MIN_COMMIT_LEN = 64
"""Tokens that are worth a request of their own before a fork."""
MAX_ENCODED_INLINE_LEN = 4096
"""Characters; longer texts are encoded in a thread, lest they hold up every stream."""


class ProgramTokenizer(TextTokenizer, ChatTokenizer, Protocol):
    @property
    def bos_token_id(self) -> int | None: ...


class EngineContext:
    """A `backend.Context`. What the engine has computed of it is the beginning of every later
    prompt."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: ProgramTokenizer,
        forms: TurnForms,
        *,
        commits: bool = True,
    ) -> None:
        """Not `commits`: the engine keeps nothing that could be continued."""
        self._client = client
        self._commits = commits
        self._tokenizer = tokenizer
        self._forms = forms
        self._transcript = Transcript(tokenizer)
        self._conversation = Conversation()
        self._turn: TurnForm | None = None
        self._computed_len = 0
        """Tokens at the beginning that the engine has seen."""

    def copy(self) -> Self:
        twin = type(self)(self._client, self._tokenizer, self._forms, commits=self._commits)
        twin._transcript = self._transcript.copy()
        twin._conversation = self._conversation.copy()
        twin._turn, twin._computed_len = self._turn, self._computed_len
        return twin

    def add_text(self, text: str) -> None:
        try:
            self._transcript.add_text(text)
        except UnicodeEncodeError as error:
            message = f"text has a lone surrogate at character {error.start}"
            raise InvalidRequest(message, param="prompt") from None
        self._conversation.add(text)

    def add_answer(self, answer: Answer) -> None:
        self._transcript.add_drawn(answer.token_ids)
        self._transcript.add_text(answer.rest)
        self._conversation.add(answer.text)

    def begin_turn(self, role: Role) -> str:
        """Raises InvalidRequest if the model's chat template does not take such a turn here."""
        self._turn = self._forms.form(self._conversation.roles, role)
        self._conversation.begin(role)
        return self._transcript.add_pieces(self._turn.before)

    def end_turn(self) -> str:
        turn, self._turn = self._turn, None
        assert turn is not None
        self._conversation.end()
        return self._transcript.add_pieces(turn.after)

    async def generate(
        self, sampling: SamplingParams, timeout_s: float | None, on_text: Callable[[str], None]
    ) -> Answer:
        prompt = await self.token_ids()
        request = _request(prompt, self._with_turn_end(sampling), timeout_s)
        wanted = sampling.logprobs is not None
        output = Output(request, Logprobs(wanted, num_top=sampling.logprobs or 0))
        finish: Finish | None = None
        async with aclosing(self._client.generate(request)) as deltas:
            async for delta in deltas:
                output.add(delta)
                on_text(delta.text)
                finish = delta.finish
        whole = output.as_dict()
        _raise_if_broken(finish)
        assert finish is not None
        text, drawn = whole["text"], whole["output_ids"]
        token_ids, rest = tokens_of(text, drawn, self._tokenizer.token_bytes, finish.matched)
        self._computed_len = len(prompt) + len(token_ids)
        meta = whole["meta_info"] | {"output_ids": drawn}
        return Answer(text, meta, token_ids, rest)

    async def select(
        self, choices: tuple[str, ...], method: SelectMethod, timeout_s: float | None
    ) -> Choice:
        base = await self.token_ids()
        if not base:
            raise InvalidRequest("select needs a text before it", param="prompt")
        begin, prompts = self._continuations(base, choices)
        logprobs = await gather_or_cancel(
            self._logprobs_from(begin, prompt, timeout_s) for prompt in prompts
        )
        alone: Sequence[Sequence[float] | None] = [None] * len(prompts)
        if method == "unconditional_likelihood_normalized":
            anchor = self._tokenizer.bos_token_id
            if anchor is None:
                anchor = self._client.model.eos_token_ids[0]
            alone = await gather_or_cancel(
                self._logprobs_from(1, [anchor, *prompt[begin:]], timeout_s) for prompt in prompts
            )
        scored = [
            Scored(
                text,
                tuple(prompt[begin:]),
                tuple(values),
                None if other is None else tuple(other),
            )
            for text, prompt, values, other in zip(choices, prompts, logprobs, alone, strict=True)
        ]
        return choose(scored, method)

    async def commit(self) -> Release | None:
        prompt = await self.token_ids() if self._commits else []
        if len(prompt) < MIN_COMMIT_LEN:
            return None
        request = _request(prompt, SamplingParams(max_tokens=0), None, HOLD_S)
        hold = PrefixHold(self._compute(request), lambda: self._client.let_go(request.request_id))
        # What is computed already, or nearly so, is worth holding but not worth waiting for.
        if len(prompt) - self._computed_len >= MIN_COMMIT_LEN:
            await hold.computed()
            self._computed_len = len(prompt)
        return hold.release

    async def _compute(self, request: GenerateRequest) -> None:
        finish: Finish | None = None
        async with aclosing(self._client.generate(request)) as deltas:
            async for delta in deltas:
                finish = delta.finish
        _raise_if_broken(finish)

    def text(self) -> str:
        return self._transcript.text()

    def messages(self) -> list[dict[str, str]]:
        return self._conversation.messages.copy()

    async def token_ids(self) -> list[int]:
        try:
            if self._transcript.unencoded_len > MAX_ENCODED_INLINE_LEN:
                return await asyncio.to_thread(self._transcript.token_ids)
            return self._transcript.token_ids()
        except TokenizerError as error:
            raise InvalidRequest(str(error), param="prompt") from None

    def _with_turn_end(self, sampling: SamplingParams) -> SamplingParams:
        """An answer within a turn ends where the turn would."""
        end_id = None if self._turn is None else self._turn.end_token_id
        stops = sampling.stop_token_ids
        known = (*stops, *self._client.model.eos_token_ids)
        if end_id is None or end_id in known or sampling.ignore_eos:
            return sampling
        return msgspec.structs.replace(sampling, stop_token_ids=(*stops, end_id))

    def _continuations(
        self, base: list[int], choices: tuple[str, ...]
    ) -> tuple[int, list[list[int]]]:
        """Each choice behind the text, and where the first difference begins: there all are scored
        from, also those whose beginning changed no token before them."""
        prompts: list[list[int]] = []
        for choice in choices:
            twin = self._transcript.copy()
            twin.add_text(choice)
            prompts.append(twin.token_ids())
        begin = min(_common_len(base, prompt) for prompt in prompts)
        if begin and all(len(prompt) > begin for prompt in prompts):
            return begin, prompts
        encode = self._tokenizer.encode_continuation
        return len(base), [base + encode(choice) for choice in choices]

    async def _logprobs_from(
        self, begin: int, prompt: list[int], timeout_s: float | None
    ) -> list[float]:
        """Of each token from the one at `begin` on, which is not the first."""
        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=0,
            prompt_logprobs=True,
            prompt_logprobs_from=begin,
        )
        entries: list[TokenLogprob | None] = []
        finish: Finish | None = None
        request = _request(prompt, sampling, timeout_s)
        async with aclosing(self._client.generate(request)) as deltas:
            async for delta in deltas:
                entries += delta.prompt_logprobs or ()
                finish = delta.finish
        _raise_if_broken(finish)
        return [entry.logprob for entry in entries[begin:] if entry is not None]


def _request(
    token_ids: list[int],
    sampling: SamplingParams,
    timeout_s: float | None,
    hold_s: float | None = None,
) -> GenerateRequest:
    return GenerateRequest(
        request_id=uuid.uuid4().hex,
        prompt=TokenPrompt(token_ids),
        sampling=sampling,
        timeout_s=timeout_s,
        hold_s=hold_s,
    )


def _raise_if_broken(finish: Finish | None) -> None:
    """Raise for an answer that did not end by itself."""
    match finish:
        case Finish("stop" | "length"):
            pass
        case Finish("error", message=message):
            raise EngineError(message or "the engine failed")
        case _:
            raise Unavailable("the request was aborted")


def _common_len(a: list[int], b: list[int]) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
