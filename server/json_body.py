"""The strict decoder at the edge: a body becomes one typed object, or a 4xx that says why."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import accumulate
from typing import Any, cast

import msgspec
from aiohttp import web

from jaxsgl.interface import InvalidRequest
from server.context import CONTEXT
from server.errors import RequestRefused

MAX_BODY_BYTES = 1 << 20
QUICK_BYTES = 32 << 10
"""Larger bodies are decoded beside the event loop."""
MAX_DEPTH = 128
"""Objects and lists within each other. What looks into a body may recurse."""
BODY_TIMEOUT_S = 30.0
"""A client gets this long to send its body."""


async def read_json[T](
    request: web.Request, decoder: msgspec.json.Decoder[T], *, default: T | None = None
) -> T:
    """The decoded body; `default`, where one is given, if there is none.

    Raises RequestRefused (408, 413, 415) for a body that should not be read, InvalidRequest for one
    that is not what `decoder` wants.
    """
    if default is not None and not request.body_exists:
        return default
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestRefused(415, "Compressed bodies are not accepted")
    charset = (request.charset or "utf-8").lower()
    if request.content_type != "application/json" or charset not in ("utf-8", "utf8"):
        raise RequestRefused(415, "Send the body as Content-Type: application/json, in UTF-8")
    too_large = RequestRefused(413, f"The body is larger than {MAX_BODY_BYTES} bytes")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise too_large
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            data = await request.read()
    except TimeoutError:
        raise RequestRefused(408, f"The body did not arrive in {BODY_TIMEOUT_S:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    ignore_unknown = request.app[CONTEXT].config.ignore_unknown_fields
    if len(data) <= QUICK_BYTES:
        return decode_json(data, decoder, ignore_unknown=ignore_unknown)
    return await asyncio.to_thread(decode_json, data, decoder, ignore_unknown=ignore_unknown)


def decode_json[T](
    data: bytes, decoder: msgspec.json.Decoder[T], *, ignore_unknown: bool = False
) -> T:
    """The object in `data`, which must be one JSON document in UTF-8 without repeated keys.

    `ignore_unknown` drops fields that the object does not have. Raises InvalidRequest, with the
    path of the offending field as `param` where there is one.
    """
    _check_depth(data)
    try:
        decoded = _decode_known(data, decoder) if ignore_unknown else decoder.decode(data)
        # msgspec lets the last of equal keys win; two readings of one body are refused instead.
        json.loads(_ID_LISTS.sub(b"[]", data), object_pairs_hook=_refuse_repeated_keys)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply") from None
    return decoded


def _check_depth(data: bytes) -> None:
    """Before anything reads it. Brackets in texts do not count."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    brackets = _TEXT.sub(b"", data).translate(None, _NO_BRACKETS)
    steps = map(_STEPS.__getitem__, brackets)
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise InvalidRequest("The body is nested too deeply")


_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # also one without an end: linear
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = dict(zip(b"[]{}", (1, -1, 1, -1), strict=True))

MAX_UNKNOWN_FIELDS = 64


def _decode_known[T](data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Drop what the decoder complains of as unknown, one field after the other."""
    for _ in range(MAX_UNKNOWN_FIELDS):
        try:
            return decoder.decode(data)
        except msgspec.ValidationError as error:
            where = _WHERE.fullmatch(str(error))
            field = where and _FIELD.fullmatch(where["what"])
            if where is None or not field or field["fault"] != "contains unknown":
                raise
            body = msgspec.json.decode(data)
            steps = _PATH_STEP.findall(where["path"] or "")
            if not _drop(body, steps, field["name"]):
                raise
            data = msgspec.json.encode(body)
    return decoder.decode(data)


def _drop(value: Any, steps: list[str], name: str) -> bool:
    """Delete the field `name` of the object that `steps` lead to; of a list, of all its items.
    Whether there was one."""
    if isinstance(value, list):
        items = cast(list[Any], value)
        return any([_drop(item, steps[1:], name) for item in items])
    if not isinstance(value, dict):
        return False
    members = cast(dict[str, Any], value)
    if steps:
        return _drop(members.get(steps[0]), steps[1:], name)
    return members.pop(name, members) is not members


_ID_LISTS = re.compile(rb"\[[\d,\s]{256,}\]")
"""Long lists of token ids. They hold no keys, and take longer to read again than all the rest."""


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidRequest(f"The key {_shorten(key)!r} is repeated", param=_shorten(key))
        seen.add(key)


_WHERE = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>.*)`)?", re.DOTALL)
_PATH_STEP = re.compile(r"\[\.\.\.\]|[^.\[\]]+")
_FIELD = re.compile(
    r"Object (?P<fault>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL
)


def _invalid_field(message: str) -> InvalidRequest:
    """msgspec's message with the field it speaks of taken out as `param`."""
    where = _WHERE.fullmatch(message)
    what, path = (where["what"], where["path"] or "") if where else (message, "")
    if field := _FIELD.fullmatch(what):
        path = f"{path}.{_shorten(field['name'])}".lstrip(".")
        if field["fault"] == "contains unknown":
            return InvalidRequest(f"{path} is not a field that is supported here", param=path)
        return InvalidRequest(f"{path} is required", param=path)
    return InvalidRequest(f"{path or 'body'}: {_shorten(what)}", param=path or None)


def _shorten(text: str) -> str:
    return text if len(text) <= 100 else text[:100] + "…"
