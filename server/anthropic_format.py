"""The body and events of /v1/messages."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Raw

from jaxsgl.interface import Delta, EngineError, Finish
from server.answer_reader import AnswerReader
from server.anthropic_schema import (
    BlockOut,
    EventOut,
    MessageOut,
    TextOut,
    ThinkingOut,
    ToolUseOut,
    UsageOut,
)
from server.errors import ErrorBody, error_detail
from server.replies import ReplyHead, UsageBody
from server.sse import named_event
from server.tools.pieces import CallArguments, CallBegin, Content, Piece, Reasoning, merged

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


class AnthropicFormat:
    """A ReplyFormat for one answer; its events end with those of `usage`."""

    def __init__(self, head: ReplyHead, make_reader: Callable[[], AnswerReader] | None) -> None:
        self._head = head
        self._reader = AnswerReader(None, None) if make_reader is None else make_reader()
        self._started = False
        self._pieces: list[Piece] = []
        self._finish: Finish | None = None
        self._has_calls = False
        self._num_blocks = 0
        self._open: type[Piece] | None = None
        """What the block that is being sent holds."""

    def add(self, index: int, delta: Delta) -> None:
        self._pieces += self._read(delta)

    def whole(self, usage: UsageBody) -> bytes:
        content = list(_blocks(merged(self._pieces)))
        return msgspec.json.encode(self._message(content, usage, ended=True))

    def opening(self, index: int) -> bytes:
        return b""

    def text(self, index: int, delta: Delta, usage: UsageBody | None) -> bytes:
        assert usage is not None
        events = b""
        if not self._started:
            self._started = True
            started = self._message([], usage, ended=False)
            events = _event(EventOut(type="message_start", message=started))
        pieces = self._read(delta)
        return events + b"".join(map(self._piece_events, pieces))

    def closing(self, index: int, finish: Finish) -> bytes:
        return self._close_block()

    def usage(self, usage: UsageBody) -> bytes:
        reason, sequence = self._ending()
        ended = EventOut(
            type="message_delta",
            delta={"stop_reason": reason, "stop_sequence": sequence},
            usage=_usage(usage),
        )
        return _event(ended) + _event(EventOut(type="message_stop"))

    def _read(self, delta: Delta) -> list[Piece]:
        pieces = self._reader.feed(delta.text)
        if delta.finish is not None:
            self._finish = delta.finish
            pieces += self._reader.finish()
        self._has_calls |= any(isinstance(piece, CallBegin) for piece in pieces)
        return merged(pieces)

    def _message(self, content: list[BlockOut], usage: UsageBody, *, ended: bool) -> MessageOut:
        reason, sequence = self._ending() if ended else (None, None)
        return MessageOut(
            id=self._head.reply_id,
            model=self._head.model,
            content=content,
            stop_reason=reason,
            stop_sequence=sequence,
            usage=_usage(usage),
        )

    def _ending(self) -> tuple[str, str | None]:
        """Why the answer ended, and the stop sequence that ended it."""
        assert self._finish is not None
        if isinstance(self._finish.matched, str):
            return "stop_sequence", self._finish.matched
        if self._has_calls and self._finish.kind == "stop":
            return "tool_use", None
        return _STOP_REASONS.get(self._finish.kind, self._finish.kind), None

    def _piece_events(self, piece: Piece) -> bytes:
        events = b""
        if not isinstance(piece, CallArguments) and (
            self._open is not type(piece) or isinstance(piece, CallBegin)
        ):
            events = self._close_block() + self._begin_block(piece)
        match piece:
            case Content(text):
                delta = {"type": "text_delta", "text": text}
            case Reasoning(text):
                delta = {"type": "thinking_delta", "thinking": text}
            case CallArguments(_, text):
                delta = {"type": "input_json_delta", "partial_json": text}
            case CallBegin():
                return events
        at = self._num_blocks - 1
        return events + _event(EventOut(type="content_block_delta", index=at, delta=delta))

    def _begin_block(self, piece: Piece) -> bytes:
        match piece:
            case Content():
                block: BlockOut = TextOut("")
            case Reasoning():
                block = ThinkingOut("")
            case CallBegin(_, name):
                block = ToolUseOut(_tool_use_id(), name, Raw(b"{}"))
            case CallArguments():
                raise AssertionError("arguments of no call")
        self._open = type(piece)
        self._num_blocks += 1
        at = self._num_blocks - 1
        return _event(EventOut(type="content_block_start", index=at, content_block=block))

    def _close_block(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event(EventOut(type="content_block_stop", index=self._num_blocks - 1))


def _blocks(pieces: list[Piece]) -> Iterator[BlockOut]:
    for at, piece in enumerate(pieces):
        match piece:
            case Content(text):
                yield TextOut(text)
            case Reasoning(text):
                yield ThinkingOut(text)
            case CallBegin(index, name):
                arguments = "".join(
                    each.text
                    for each in pieces[at:]
                    if isinstance(each, CallArguments) and each.index == index
                )
                yield ToolUseOut(_tool_use_id(), name, Raw(arguments.encode()))
            case CallArguments():
                pass


def _usage(usage: UsageBody) -> UsageOut:
    cached = usage.prompt_tokens_details.cached_tokens
    return UsageOut(usage.prompt_tokens - cached, usage.completion_tokens, cached)


def _event(body: EventOut) -> bytes:
    return named_event(body.type, msgspec.json.encode(body))


def _tool_use_id() -> str:
    return f"toolu_{uuid.uuid4().hex[:24]}"


class AnthropicError(ErrorBody, frozen=True, kw_only=True):
    """Anthropic's body of an error, with OpenAI's members in it as well."""

    type: str = "error"


def anthropic_error_event(error: EngineError) -> bytes:
    return named_event("error", anthropic_error_body(error))


def anthropic_error_body(error: EngineError) -> bytes:
    return msgspec.json.encode(AnthropicError(error=error_detail(error)))
