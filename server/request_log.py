"""What `--log-requests` tells of each generation, once it has ended."""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec

from jaxsgl.interface import ChatPrompt, Delta, GenerateRequest, TextPrompt, Usage
from jaxsgl.logs import log_fields

CUT_LEN = 2048
"""Characters of prompt and answer that level 2 shows."""

logger = logging.getLogger(__name__)


class RequestLog:
    """Notes one request on its way and writes one record at its end.

    Level 0 has sizes, times and how it ended; 1 the sampling parameters too; 2 the beginning of
    prompt and answer; 3 all of both.
    """

    def __init__(self, level: int, request: GenerateRequest) -> None:
        self._level = level
        self._request = request
        self._begin_s = time.perf_counter()
        self._first_s: float | None = None
        self._usage = Usage(0, 0, 0)
        self._pieces: list[str] = []

    def note(self, delta: Delta) -> None:
        if self._first_s is None and delta.token_ids:
            self._first_s = time.perf_counter()
        self._usage = delta.usage
        if self._level >= 2 and delta.text:
            self._pieces.append(delta.text)

    def end(self, how: str) -> None:
        """`how`: a finish reason, or what else ended it."""
        usage = self._usage
        fields: dict[str, Any] = {
            "request": self._request.request_id,
            "finish": how,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
            "e2e_s": time.perf_counter() - self._begin_s,
        }
        if self._first_s is not None:
            fields["ttft_s"] = self._first_s - self._begin_s
        if self._level >= 1:
            fields["sampling"] = msgspec.to_builtins(self._request.sampling)
        if self._level >= 2:
            cut_len = CUT_LEN if self._level == 2 else None
            fields["prompt"] = self._prompt(cut_len)
            fields["answer"] = "".join(self._pieces)[:cut_len]
        log_fields(logger, logging.INFO, "generated", fields)

    def _prompt(self, cut_len: int | None) -> Any:
        prompt = self._request.prompt
        if isinstance(prompt, TextPrompt):
            return prompt.text[:cut_len]
        if isinstance(prompt, ChatPrompt):
            return msgspec.json.encode(prompt.messages).decode()[:cut_len]
        return prompt.token_ids[:cut_len]
