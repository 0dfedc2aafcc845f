"""What --log-requests tells, level by level."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from jaxsgl.command_line import parse_command_line
from jaxsgl.config import ServerConfig
from tests.server.conftest import serve
from tests.server.test_openai_routes import CHAT, TEXT, chat

LONG = "ab" * 20


async def logged(
    caplog: pytest.LogCaptureFixture, args: list[str], path: str, body: dict[str, Any]
) -> list[dict[str, Any]]:
    caplog.set_level(logging.INFO, "server.request_log")
    config: ServerConfig
    (config,) = parse_command_line(args, "prog", "", ServerConfig)
    async with serve(config) as served:
        await served.post(path, body)
    records = [record for record in caplog.records if record.name == "server.request_log"]
    return [record.__dict__["fields"] for record in records]


@pytest.mark.parametrize("level", [0, 1, 2, 3])
async def test_each_level(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    monkeypatch.setattr("server.request_log.CUT_LEN", 4)
    args = ["--log-requests", "--log-requests-level", str(level)]
    (fields,) = await logged(caplog, args, TEXT, {"prompt": LONG, "max_tokens": 6})
    assert (fields["finish"], fields["prompt_tokens"], fields["completion_tokens"]) == (
        "length",
        40,
        6,
    )
    assert fields["cached_tokens"] == 20 and 0 < fields["ttft_s"] <= fields["e2e_s"]
    assert ("sampling" in fields) is (level >= 1)
    if level >= 1:
        assert fields["sampling"] == {"max_tokens": 6}
    assert fields.get("prompt") == {0: None, 1: None, 2: "abab", 3: LONG}[level]
    assert fields.get("answer") == {0: None, 1: None, 2: "abab", 3: "ababab"}[level]


async def test_chats_and_token_ids(caplog: pytest.LogCaptureFixture) -> None:
    args = ["--log-requests", "--log-requests-level", "3"]
    (fields,) = await logged(caplog, args, CHAT, chat("abc", max_tokens=1))
    assert '"content":"abc"' in fields["prompt"]
    caplog.clear()
    (fields,) = await logged(caplog, args, TEXT, {"prompt": [97, 98], "max_tokens": 1})
    assert fields["prompt"] == [97, 98]


async def test_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    (fields,) = await logged(caplog, ["--log-requests"], TEXT, {"prompt": ""})
    assert fields["finish"] == "refused" and "ttft_s" not in fields


async def test_by_default_there_are_none(caplog: pytest.LogCaptureFixture) -> None:
    assert await logged(caplog, [], TEXT, {"prompt": "a", "max_tokens": 1}) == []
