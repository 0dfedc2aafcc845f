"""The body and events of /v1/responses."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from jaxsgl.interface import Delta, EngineError, Finish
from server.answer_reader import AnswerReader
from server.replies import ReplyHead, UsageBody
from server.responses_schema import (
    CallOut,
    IncompleteDetails,
    InputTokensDetails,
    ItemOut,
    MessageOut,
    OutputText,
    OutputTokensDetails,
    ReasoningOut,
    ReasoningText,
    ResponseError,
    ResponseEvent,
    ResponseOut,
    ResponsesBody,
    ResponseUsage,
)
from server.sse import named_event
from server.tools.pieces import CallArguments, CallBegin, Content, Piece, Reasoning

_INCOMPLETE = {"length": "max_output_tokens"}


class ResponsesFormat:
    """A ReplyFormat for one answer; its events end with those of `usage`.

    `response` is what there is so far, at any time.
    """

    def __init__(
        self,
        head: ReplyHead,
        body: ResponsesBody,
        make_reader: Callable[[], AnswerReader] | None,
        on_end: Callable[[ResponseOut], None] = lambda response: None,
    ) -> None:
        """`on_end` is told of the response when it is complete."""
        self._reader = AnswerReader(None, None) if make_reader is None else make_reader()
        self._on_end = on_end
        self._num_events = 0
        self._num_reasoning_tokens = 0
        self._finish: Finish | None = None
        self._items: list[ItemOut] = []
        self._open = False
        """Whether more may come to the last item."""
        self._started = False
        self.response = _new_response(head, body)

    def num_reasoning_tokens(self) -> int:
        return self._num_reasoning_tokens

    def add(self, index: int, delta: Delta) -> None:
        self._events_of(delta)

    def whole(self, usage: UsageBody) -> bytes:
        self._end(usage)
        return msgspec.json.encode(self.response)

    def opening(self, index: int) -> bytes:
        return b""

    def text(self, index: int, delta: Delta, usage: UsageBody | None) -> bytes:
        events = b""
        if not self._started:
            self._started = True
            for name in ("response.created", "response.in_progress"):
                events += self._event(name, response=self.response)
        return events + self._events_of(delta)

    def closing(self, index: int, finish: Finish) -> bytes:
        return b""

    def usage(self, usage: UsageBody) -> bytes:
        self._end(usage)
        return self._event(f"response.{self.response.status}", response=self.response)

    def failure(self, error: EngineError) -> bytes:
        """The last event of a stream that broke."""
        self.fail(error)
        return self._event("response.failed", response=self.response)

    def fail(self, error: EngineError, status: str = "failed") -> None:
        """The response ends here, with what there is of it."""
        self._close_item("incomplete")
        self._change(
            status=status,
            output=list(self._items),
            error=None
            if status == "cancelled"
            else ResponseError(error.code or error.kind, error.message),
        )
        self._on_end(self.response)

    def _change(self, **values: Any) -> None:
        self.response = msgspec.structs.replace(self.response, **values)

    def _end(self, usage: UsageBody) -> None:
        assert self._finish is not None
        reason = _INCOMPLETE.get(self._finish.kind)
        if self._finish.kind == "abort":
            self._change(status="cancelled")
        elif reason is not None:
            self._change(status="incomplete", incomplete_details=IncompleteDetails(reason))
        else:
            self._change(status="completed")
        self._change(output=list(self._items), usage=_usage(usage, self._num_reasoning_tokens))
        self._on_end(self.response)

    def _events_of(self, delta: Delta) -> bytes:
        pieces = self._reader.feed(delta.text)
        if self._reader.reasoning:
            self._num_reasoning_tokens += len(delta.token_ids)
        if delta.finish is not None:
            self._finish = delta.finish
            pieces += self._reader.finish()
        events = b"".join(map(self._piece_events, pieces))
        if delta.finish is not None:
            cut_off = delta.finish.kind in _INCOMPLETE
            events += self._close_item("incomplete" if cut_off else "completed")
        return events

    def _piece_events(self, piece: Piece) -> bytes:
        last = self._items[-1] if self._open else None
        at = len(self._items) - 1
        match piece, last:
            case Content(text), MessageOut():
                whole = last.content[0].text + text
                self._items[-1] = msgspec.structs.replace(last, content=[OutputText(text=whole)])
                return self._delta("response.output_text.delta", last.id, at, text, logprobs=[])
            case Reasoning(text), ReasoningOut():
                whole = last.content[0].text + text
                self._items[-1] = msgspec.structs.replace(last, content=[ReasoningText(text=whole)])
                return self._delta("response.reasoning_text.delta", last.id, at, text)
            case CallArguments(_, text), CallOut():
                self._items[-1] = msgspec.structs.replace(last, arguments=last.arguments + text)
                return self._event(
                    "response.function_call_arguments.delta",
                    item_id=last.id,
                    output_index=at,
                    delta=text,
                )
            case CallBegin(), _:
                return self._close_item("completed") + self._open_item(piece)
            case _:
                return (
                    self._close_item("completed")
                    + self._open_item(piece)
                    + self._piece_events(piece)
                )

    def _open_item(self, piece: Piece) -> bytes:
        match piece:
            case Content():
                part: OutputText | ReasoningText | None = OutputText(text="")
                item: ItemOut = MessageOut(id=_new_id("msg"), status="in_progress", content=[part])
                shown: ItemOut = msgspec.structs.replace(item, content=[])
            case Reasoning():
                part = ReasoningText(text="")
                item = ReasoningOut(id=_new_id("rs"), status="in_progress", content=[part])
                shown = msgspec.structs.replace(item, content=[])
            case CallBegin(_, name):
                part = None
                item = CallOut(
                    id=_new_id("fc"),
                    status="in_progress",
                    call_id=_new_id("call"),
                    name=name,
                    arguments="",
                )
                shown = item
            case CallArguments():
                raise AssertionError("arguments of no call")
        self._items.append(item)
        self._open = True
        at = len(self._items) - 1
        events = self._event("response.output_item.added", output_index=at, item=shown)
        if part is not None:
            events += self._event(
                "response.content_part.added",
                item_id=item.id,
                output_index=at,
                content_index=0,
                part=part,
            )
        return events

    def _close_item(self, status: str) -> bytes:
        if not self._open:
            return b""
        self._open = False
        at = len(self._items) - 1
        item = self._items[-1] = msgspec.structs.replace(self._items[-1], status=status)
        place: dict[str, Any] = {"item_id": item.id, "output_index": at}
        if isinstance(item, CallOut):
            events = self._event(
                "response.function_call_arguments.done",
                **place,
                name=item.name,
                arguments=item.arguments,
            )
        else:
            part = item.content[0]
            place["content_index"] = 0
            if isinstance(part, OutputText):
                name, more = "response.output_text.done", {"logprobs": list[Any]()}
            else:
                name, more = "response.reasoning_text.done", dict[str, Any]()
            events = self._event(name, **place, text=part.text, **more)
            events += self._event("response.content_part.done", **place, part=part)
        return events + self._event("response.output_item.done", output_index=at, item=item)

    def _delta(self, name: str, item_id: str, at: int, text: str, **more: Any) -> bytes:
        return self._event(
            name, item_id=item_id, output_index=at, content_index=0, delta=text, **more
        )

    def _event(self, kind: str, /, **members: Any) -> bytes:
        event = ResponseEvent(type=kind, sequence_number=self._num_events, **members)
        self._num_events += 1
        return named_event(kind, msgspec.json.encode(event))


def _new_response(head: ReplyHead, body: ResponsesBody) -> ResponseOut:
    given = None if body.text is None else body.text.format
    return ResponseOut(
        id=head.reply_id,
        created_at=head.created,
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        model=head.model,
        output=[],
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        temperature=body.temperature,
        top_p=body.top_p,
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        text={"format": {"type": "text"} if given is None else given},
        background=bool(body.background),
    )


def _usage(usage: UsageBody, num_reasoning_tokens: int) -> ResponseUsage:
    return ResponseUsage(
        usage.prompt_tokens,
        InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
        usage.completion_tokens,
        OutputTokensDetails(num_reasoning_tokens),
        usage.total_tokens,
    )


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"
