"""SGLang's routes around /generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jaxsgl.config import ServerConfig
from tests.server.conftest import Served, serve


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokenize_and_back(served: Served, prefix: str) -> None:
    status, reply = await served.post(f"{prefix}/tokenize", {"prompt": "abc"})
    assert (status, reply) == (200, {"tokens": [97, 98, 99], "count": 3, "max_model_len": 64})
    _, reply = await served.post(f"{prefix}/tokenize", {"prompt": ["a", ""]})
    assert reply == {"tokens": [[97], []], "count": [1, 0], "max_model_len": 64}
    status, reply = await served.post(f"{prefix}/detokenize", {"tokens": [97, 10]})
    assert (status, reply) == (200, {"text": "a"})
    body = {"tokens": [[97, 10], [98]], "skip_special_tokens": False}
    assert (await served.post(f"{prefix}/detokenize", body))[1] == {"text": ["a\n", "b"]}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"prompt": []}, 400, "prompt"),
        ("/tokenize", {}, 400, "prompt"),
        ("/detokenize", {"tokens": [256]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, [2]]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, 400, "tokens[0]"),
        ("/abort_request", {}, 400, "rid"),
        ("/pause_generation", {"mode": "x"}, 400, "mode"),
        ("/start_profile", {"duration_s": 601}, 400, "duration_s"),
        ("/start_profile", {"output_dir": "/"}, 400, "output_dir"),
    ],
)
async def test_refusals(
    served: Served, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    got, reply = await served.post(path, body)
    assert (got, reply["error"]["param"]) == (status, param)
    assert served.engine.orders == []


async def test_orders(served: Served) -> None:
    for path, body in (
        ("/abort_request", {"rid": "x"}),
        ("/abort_request", {"abort_all": True}),
        ("/pause_generation", {"mode": "retract"}),
        ("/continue_generation", {}),
    ):
        assert (await served.post(path, body))[0] == 200
    async with served.session.post(served.url + "/pause_generation") as response:
        assert response.status == 200  # the body may be left out
    assert served.engine.orders == [
        ("abort", "x"),
        ("abort_all",),
        ("pause", "retract"),
        ("resume",),
        ("pause", "abort"),
    ]


async def test_profiles(served: Served) -> None:
    async with served.session.post(served.url + "/start_profile") as response:
        assert response.status == 200
        folder = (await response.json())["folder"]
    assert served.engine.orders == [("start_profile", folder, 60.0)]
    assert (await served.post("/start_profile", {"duration_s": 1}))[0] == 400
    assert (await served.post("/stop_profile", {}))[0] == 200
    assert (await served.post("/stop_profile", {}))[0] == 400


async def test_profiles_go_where_the_operator_says(tmp_path: Path) -> None:
    """--profile-dir, that is; a client has no say in it."""
    async with serve(ServerConfig(profile_dir=str(tmp_path))) as served:
        _, reply = await served.post("/start_profile", {"duration_s": 2})
        assert Path(reply["folder"]).parent == tmp_path
        assert served.engine.orders == [("start_profile", reply["folder"], 2.0)]


async def test_what_is_served(served: Served) -> None:
    for prefix in ("", "get_"):
        _, reply = await served.get(f"/{prefix}model_info")
        assert (reply["model_path"], reply["is_generation"]) == ("fake-model", True)
        _, reply = await served.get(f"/{prefix}server_info")
        assert reply["model"]["context_len"] == 64
        assert (reply["settings"]["page_size"], reply["stats"]["pages_total"]) == (16, 10)
    _, reply = await served.get("/v1/loads")
    assert [load.pop("dp_rank") for load in reply["loads"]] == [0, 1]
    assert [load.pop("devices") for load in reply["loads"]] == [["0"], ["1"]]
    for load in reply["loads"]:
        assert load == {
            "state": "ready",
            "num_in_flight": 0,
            "num_running_reqs": 0,
            "num_waiting_reqs": 0,
            "num_total_reqs": 0,
            "num_used_tokens": 32,
            "max_total_num_tokens": 160,
            "token_usage": 0.2,
            "cache_hit_rate": 0.0,
            "max_running_requests": 0,
        }


@pytest.mark.parametrize("ready", [True, False])
async def test_every_answer_counts_the_devices(served: Served, ready: bool) -> None:
    served.engine.ready = ready
    for path in ("/health", "/nothing", "/v1/models", "/metrics"):
        async with served.session.get(served.url + path) as response:
            assert response.headers["x-sglang-gpu-count"] == str(int(ready))
    body = {"prompt": "ab", "messages": [{"role": "user", "content": "ab"}]}
    for path, field in (("/v1/completions", "prompt"), ("/v1/chat/completions", "messages")):
        async with served.session.post(served.url + path, json={field: body[field]}) as response:
            assert response.headers["x-sglang-gpu-count"] == str(int(ready))
            assert (await response.json()).get("x-sglang-gpu-count") == (1 if ready else None)


async def test_nothing_is_told_before_the_model_is_known(served: Served) -> None:
    served.engine.ready = False
    for path in ("/get_model_info", "/get_server_info", "/v1/loads", "/v1/models"):
        assert (await served.get(path))[0] == 503
    for path in ("/generate", "/tokenize", "/detokenize", "/abort_request", "/pause_generation"):
        assert (await served.post(path, {}))[0] == 503
