"""Collects the rows of one step and lays them out as a StepPlan."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from jaxsgl.scheduling.request import Request
from jaxsgl.scheduling.shared_prefixes import PrefixSharing, page_order
from jaxsgl.scheduling.step_costs import MIN_CHUNK, StepWork, attending
from jaxsgl.step import (
    LAST_TOKEN,
    SAMPLE,
    ConstrainedDraw,
    SlotOpening,
    StepLimits,
    StepPacks,
    StepPlan,
)

MIN_SPLIT_TOKENS = 512
"""Steps of fewer take about as long as reading the weights does, however many they are."""
STEP_TOKENS = 256
"""About so many more take as long as one more step does."""
_NO_EDITS = np.empty((0, 3), np.int32)


class PlanBuilder:
    """Room for one step: rows, new tokens, wanted logits."""

    def __init__(self, limits: StepLimits, *, chunked: bool = True) -> None:
        """Without `chunked`, a request gets all the tokens it wants or waits for the next step."""
        self._chunked = chunked
        self._sizes = limits.mixed_sizes
        self.rows_left = limits.max_rows
        self.tokens_left = limits.max_tokens
        self.logits_left = limits.max_logits
        self._pairs_left = math.inf
        self.requests: list[Request] = []
        self._slot: list[int] = []
        self._q_start = [0]
        self._token_ids: list[int] = []
        self._kv_len: list[int] = []
        self._write_from: list[int] = []
        self._logit_idx: list[int] = []
        self._logit_start = [0]
        self._logit_target: list[int] = []
        self._edits: list[tuple[int, int, NDArray[np.int32]]] = []
        """(slot, first index in its page table, pages from there on)"""
        self._openings: list[SlotOpening] = []
        self._constrained: list[ConstrainedDraw] = []
        self._num_top_logprobs: int | None = None
        self._wants_hidden = False
        self._decode_only = True
        self._is_chain = False
        self._num_pairs = 0
        self._num_keys = 0

    @property
    def work(self) -> StepWork:
        """What the rows so far amount to."""
        return StepWork(self._q_start[-1], self._num_pairs, self._num_keys)

    def bound(self, num_tokens: int, num_pairs: float) -> None:
        """Take no more than so many further tokens, attending to so many keys between them."""
        self.tokens_left = min(self.tokens_left, num_tokens)
        self._pairs_left = num_pairs

    def fit(self, num_wanted: int) -> None:
        """So many further tokens are wanted. Where they would leave most of their padded size
        empty, fill the size below it: what is left over costs less in the next step."""
        begin = self._q_start[-1]
        end = begin + min(num_wanted, self.tokens_left)
        index = bisect_left(self._sizes, end)
        if not self._chunked or index == 0 or index == len(self._sizes):
            return
        below, above = self._sizes[index - 1 : index + 1]
        if below < begin + STEP_TOKENS or below < MIN_SPLIT_TOKENS:
            return
        if end - below + STEP_TOKENS < above - end:
            self.tokens_left = below - begin

    def num_takeable(self, request: Request, *, computed: int | None = None) -> int:
        """How many of the tokens that `request` wants fit into what is left of this step.

        `computed` stands in for the request's own counter where it has no place yet.
        """
        if self.rows_left == 0 or self.logits_left == 0:
            return 0
        start = request.computed if computed is None else computed
        num_wanted = request.num_wanted - (start - request.computed)
        num_tokens = min(num_wanted, self.tokens_left)
        if self._pairs_left < math.inf:
            num_tokens = min(num_tokens, self._num_attending(start))
        if request.prompt_logprobs is not None and start < request.prompt_len:
            # Every position whose next token is to be scored asks for its logits.
            num_silent = max(0, request.num_scored - 1 - start)
            return min(num_tokens, num_silent + self.logits_left)
        return num_tokens if self._chunked or num_tokens == num_wanted else 0

    def _num_attending(self, context_len: int) -> int:
        """How many tokens behind that context the bound on attention leaves room for. The first
        chunk is never left out: it might be for ever."""
        least = MIN_CHUNK if not self._num_pairs else 0
        return max(least, attending(self._pairs_left, context_len))

    def open_slot(self, request: Request, pages: NDArray[np.int32]) -> None:
        """Announce that the request's slot is its own from this step on."""
        self._openings.append(
            SlotOpening(
                slot=request.slot,
                sampling=request.sampling,
                token_ids=request.known_ids(),
                prompt_len=request.prompt_len,
                end_token_ids=request.end_token_ids,
            )
        )
        self.edit_pages(request.slot, 0, pages)
        request.page_order = page_order(pages)

    def edit_pages(self, slot: int, first: int, pages: NDArray[np.int32]) -> None:
        """Set entries `first`, `first + 1`, ... of the slot's page table."""
        self._edits.append((slot, first, pages))

    def add_row(self, request: Request, num_tokens: int) -> None:
        """Give the request the next `num_tokens` of the tokens it wants, and advance its
        counters."""
        begin, end = request.computed, request.computed + num_tokens
        offset = self._q_start[-1]
        if request.prompt_logprobs is not None:
            self._want_prompt_logprobs(request, begin, end, offset)
        samples = end == request.known + request.pending
        if samples:
            if request.grammar is not None:
                answer_len = request.num_generated + request.pending
                draw = ConstrainedDraw(len(self._logit_idx), answer_len, request.grammar)
                self._constrained.append(draw)
            self._logit_idx.append(offset + num_tokens - 1)
            self._logit_target.append(SAMPLE)
            request.pending += 1
            self._wants_hidden |= request.sampling.embedding
        if request.sampling.logprobs is not None:
            self._want_logprobs(request.sampling.logprobs)

        self.requests.append(request)
        self._slot.append(request.slot)
        if num_tokens == 1:
            self._token_ids.append(request.tokens[begin] if begin < request.known else LAST_TOKEN)
        else:
            self._token_ids += request.tokens[begin:end]
            self._token_ids += [LAST_TOKEN] * (end - max(begin, request.known))
        self._q_start.append(offset + num_tokens)
        self._kv_len.append(end)
        assert request.lease is not None
        self._write_from.append(request.lease.shared_len)
        self.logits_left -= len(self._logit_idx) - self._logit_start[-1]
        self._logit_start.append(len(self._logit_idx))
        self.rows_left -= 1
        self.tokens_left -= num_tokens
        if num_tokens == 1:
            self._num_keys += end
        else:
            num_pairs = num_tokens * begin + num_tokens * (num_tokens + 1) // 2
            self._num_pairs += num_pairs
            self._pairs_left = max(0.0, self._pairs_left - num_pairs)
        self._decode_only &= samples and num_tokens == 1
        request.computed = end

    def add_chain(self, request: Request, num_draws: int) -> None:
        """Give the request a token, the next that it wants, and others behind it, each the draw of
        the one before. All rows of the step are such."""
        assert request.lease is not None
        begin, offset = request.computed, self._q_start[-1]
        self._token_ids.append(request.tokens[begin] if begin < request.known else LAST_TOKEN)
        self._token_ids += [LAST_TOKEN] * (num_draws - 1)
        self._logit_idx += range(offset, offset + num_draws)
        self._logit_target += [SAMPLE] * num_draws
        self.requests.append(request)
        self._slot.append(request.slot)
        self._q_start.append(offset + num_draws)
        self._kv_len.append(begin + num_draws)
        self._write_from.append(request.lease.shared_len)
        self._logit_start.append(len(self._logit_idx))
        self._is_chain = True
        request.pending += num_draws
        request.computed += num_draws

    def build(self, step_id: int, sharing: PrefixSharing) -> StepPlan:
        for request in self.requests:
            request.last_step_id = step_id
        # Programs that only decode keep their hidden states to themselves.
        decodes = self._decode_only and not self._wants_hidden
        packs = self._pack(sharing) if decodes and not self._is_chain else None
        mode = "mixed" if not decodes else "decode" if packs is None else "shared"
        if self._is_chain:
            mode = "chain"
        return StepPlan(
            step_id=step_id,
            mode=mode,
            slot=np.array(self._slot, np.int32),
            q_start=np.array(self._q_start, np.int32),
            token_ids=np.array(self._token_ids, np.int32),
            kv_len=np.array(self._kv_len, np.int32),
            write_from=np.array(self._write_from, np.int32),
            logit_idx=np.array(self._logit_idx, np.int32),
            logit_start=np.array(self._logit_start, np.int32),
            logit_target=np.array(self._logit_target, np.int32),
            page_edits=self._page_edits(),
            packs=packs,
            openings=tuple(self._openings),
            num_top_logprobs=self._num_top_logprobs,
            wants_hidden=self._wants_hidden,
            constrained=tuple(self._constrained),
        )

    def _page_edits(self) -> NDArray[np.int32]:
        """All at once: hundreds of rows may open or grow in one step."""
        if not self._edits:
            return _NO_EDITS
        slots, firsts, pages = zip(*self._edits, strict=True)
        counts = np.array([len(each) for each in pages], np.int32)
        begins = np.cumsum(counts, dtype=np.int32) - counts
        edits = np.empty((int(counts.sum()), 3), np.int32)
        edits[:, 0] = np.repeat(np.array(slots, np.int32), counts)
        edits[:, 1] = np.arange(len(edits), dtype=np.int32)
        edits[:, 1] += np.repeat(np.array(firsts, np.int32) - begins, counts)
        edits[:, 2] = np.concatenate(pages)
        return edits

    def _pack(self, sharing: PrefixSharing) -> StepPacks | None:
        """Bring rows of single tokens that begin alike together, if that is worth it."""
        orders = [request.page_order for request in self.requests]
        found = sharing.find(orders, self._kv_len)
        if found is None:
            return None
        order, packs = found
        # Of one token and one draw per row, whatever counts tokens or draws stays as it is.
        self.requests = [self.requests[row] for row in order]
        self._slot = [self._slot[row] for row in order]
        self._token_ids = [self._token_ids[row] for row in order]
        self._kv_len = [self._kv_len[row] for row in order]
        self._write_from = [self._write_from[row] for row in order]
        place = np.argsort(order)
        self._constrained = [
            dataclasses.replace(draw, logit=int(place[draw.logit])) for draw in self._constrained
        ]
        return packs

    def _want_prompt_logprobs(self, request: Request, begin: int, end: int, offset: int) -> None:
        # What was scored before a retraction is not scored again, though it may be computed again.
        first = max(begin, request.num_scored - 1)
        last = min(end, request.prompt_len - 1)
        for position in range(first, last):
            self._logit_idx.append(offset + position - begin)
            self._logit_target.append(request.tokens[position + 1])
        if first < last:
            request.num_scored = last + 1
            self._want_logprobs(request.sampling.logprobs or 0)

    def _want_logprobs(self, num_top: int) -> None:
        self._num_top_logprobs = max(self._num_top_logprobs or 0, num_top)
