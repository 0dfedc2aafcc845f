"""The bodies and events of /v1/chat/completions."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET

from jaxsgl.interface import Delta, Finish
from server.answer_reader import AnswerReader
from server.chat_reply import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    FunctionCall,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)
from server.logprobs import ChatLogprobs, ChatTokenLogprob, TokenBytes, chat_logprobs
from server.replies import ReplyHead, UsageBody, is_step
from server.sse import TextEvent, event
from server.tools.pieces import (
    CallArguments,
    CallBegin,
    Content,
    Piece,
    Reasoning,
    merged,
)


@dataclass(slots=True)
class _Answer:
    reader: AnswerReader | None
    pieces: list[Piece] = field(default_factory=list[Piece])
    logprobs: list[ChatTokenLogprob] = field(default_factory=list[ChatTokenLogprob])
    num_calls: int = 0
    finish: Finish | None = None

    def read(self, delta: Delta) -> list[Piece]:
        """What a delta brings."""
        if self.reader is None:
            pieces: list[Piece] = [Content(delta.text)]
        else:
            pieces = self.reader.feed(delta.text)
            if delta.finish is not None:
                pieces += self.reader.finish()
        self.num_calls += sum(isinstance(piece, CallBegin) for piece in pieces)
        return pieces


class ChatFormat:
    """A ReplyFormat."""

    def __init__(
        self,
        head: ReplyHead,
        token_bytes: TokenBytes,
        make_reader: Callable[[], AnswerReader] | None = None,
        *,
        calls_end: bool = True,
    ) -> None:
        """Without `make_reader` answers are nothing but content. `calls_end`: an answer with calls
        says that it ended for them."""
        self._head = head
        self._token_bytes = token_bytes
        self._make_reader = make_reader
        self._calls_end = calls_end
        self._num_reasoning_tokens = 0
        self._answers: dict[int, _Answer] = {}
        self._text_events: dict[int, TextEvent] = {}

    def num_reasoning_tokens(self) -> int:
        """Tokens of all answers that were reasoning."""
        return self._num_reasoning_tokens

    def add(self, index: int, delta: Delta) -> None:
        answer = self._answer(index)
        answer.pieces += self._read(answer, delta)
        answer.finish = delta.finish
        answer.logprobs += chat_logprobs(delta.logprobs or (), self._token_bytes)

    def whole(self, usage: UsageBody) -> bytes:
        choices = [self._choice(index, answer) for index, answer in sorted(self._answers.items())]
        head = self._head
        return msgspec.json.encode(
            ChatCompletion(head.reply_id, head.created, head.model, choices, usage, head.gpu_count)
        )

    def opening(self, index: int) -> bytes:
        delta = ChatDelta(role="assistant", content="")
        return self._event(ChatChunkChoice(index, None, None, delta))

    def text(self, index: int, delta: Delta, usage: UsageBody | None) -> bytes:
        pieces = self._read(self._answer(index), delta)
        if delta.logprobs is None and usage is None:
            events = b"".join(self._piece_event(index, piece) for piece in pieces)
            # Among the pieces of a reader, empty content would look like the end of reasoning.
            if not events and self._make_reader is None and is_step(delta):
                return self._text_event(index)("")
            return events
        logprobs = None
        if delta.logprobs is not None:
            logprobs = ChatLogprobs(chat_logprobs(delta.logprobs, self._token_bytes))
        first, *others = pieces or [Content("")]
        events = self._event(ChatChunkChoice(index, logprobs, None, _delta(first)), usage=usage)
        for piece in others:
            events += self._event(ChatChunkChoice(index, None, None, _delta(piece)), usage=usage)
        return events

    def closing(self, index: int, finish: Finish) -> bytes:
        return self._event(
            ChatChunkChoice(
                index,
                None,
                self._finish_reason(self._answer(index), finish),
                ChatDelta(),
                finish.matched,
                self._head.stop_reason(finish),
            )
        )

    def usage(self, usage: UsageBody) -> bytes:
        return self._event(usage=usage)

    def _answer(self, index: int) -> _Answer:
        if index not in self._answers:
            reader = None if self._make_reader is None else self._make_reader()
            self._answers[index] = _Answer(reader)
        return self._answers[index]

    def _read(self, answer: _Answer, delta: Delta) -> list[Piece]:
        pieces = answer.read(delta)
        if answer.reader is not None and answer.reader.reasoning:
            self._num_reasoning_tokens += len(delta.token_ids)
        return pieces

    def _choice(self, index: int, answer: _Answer) -> ChatChoice:
        assert answer.finish is not None
        return ChatChoice(
            index,
            _message(merged(answer.pieces)),
            ChatLogprobs(answer.logprobs) if answer.logprobs else None,
            self._finish_reason(answer, answer.finish),
            answer.finish.matched,
            self._head.stop_reason(answer.finish),
        )

    def _finish_reason(self, answer: _Answer, finish: Finish) -> str:
        called = answer.num_calls and finish.kind == "stop" and self._calls_end
        return "tool_calls" if called else finish.kind

    def _piece_event(self, index: int, piece: Piece) -> bytes:
        if isinstance(piece, Content):
            return self._text_event(index)(piece.text) if piece.text else b""
        return self._event(ChatChunkChoice(index, None, None, _delta(piece)))

    def _text_event(self, index: int) -> TextEvent:
        if index not in self._text_events:
            self._text_events[index] = TextEvent(
                lambda text: self._chunk(
                    ChatChunkChoice(index, None, None, ChatDelta(content=text))
                )
            )
        return self._text_events[index]

    def _event(self, *choices: ChatChunkChoice, usage: UsageBody | None = None) -> bytes:
        return event(msgspec.json.encode(self._chunk(*choices, usage=usage)))

    def _chunk(self, *choices: ChatChunkChoice, usage: UsageBody | None = None) -> ChatChunk:
        head = self._head
        return ChatChunk(
            head.reply_id, "chat.completion.chunk", head.created, head.model, choices, usage
        )


def _delta(piece: Piece) -> ChatDelta:
    match piece:
        case Content(text):
            return ChatDelta(content=text)
        case Reasoning(text):
            return ChatDelta(reasoning_content=text)
        case CallBegin(index, name):
            function = FunctionDelta(name, "")
            return ChatDelta(tool_calls=[ToolCallDelta(index, function, _call_id(), "function")])
        case CallArguments(index, text):
            return ChatDelta(tool_calls=[ToolCallDelta(index, FunctionDelta(arguments=text))])


def _message(pieces: list[Piece]) -> ChatMessage:
    names: list[str] = []
    arguments: list[str] = []
    content = reasoning = ""
    for piece in pieces:
        match piece:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case CallBegin(_, name):
                names.append(name)
                arguments.append("")
            case CallArguments(index, text):
                arguments[index] += text
    calls = [
        ToolCall(_call_id(), "function", FunctionCall(name, text))
        for name, text in zip(names, arguments, strict=True)
    ]
    return ChatMessage(
        content=None if calls and not content else content,
        reasoning_content=reasoning or UNSET,
        tool_calls=calls or UNSET,
    )


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
