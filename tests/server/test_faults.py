"""Faults of `docs/faults.md` that no other test has a place for."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.server.conftest import Served
from tests.server.test_openai_routes import CHAT, TEXT, chat


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["a"] * 100_000}, "stop"),
        ({"stop": "a" * 1_000_000}, "stop"),
        ({"logit_bias": {str(n): 1 for n in range(60_000)}}, "logit_bias"),
        ({"bad_words": ["a"] * 100_000}, "bad_words"),
        ({"stop_token_ids": [1] * 200_000}, "stop_token_ids"),
        ({"allowed_token_ids": [1] * 300_000}, "allowed_token_ids"),
        ({"stop_regex": ["(a+)+$"] * 50_000}, "stop_regex"),
    ],
)
async def test_a_great_many_of_anything(served: Served, fields: dict[str, Any], param: str) -> None:
    for path, body in ((TEXT, {"prompt": "ab", **fields}), (CHAT, chat("ab", **fields))):
        begin_s = time.process_time()
        status, answer = await served.post(path, body)
        assert (status, answer["error"]["param"]) == (400, param)
        assert time.process_time() - begin_s < 5.0
    assert served.engine.requests == []
