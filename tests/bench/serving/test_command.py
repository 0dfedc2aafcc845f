"""The command from its flags to its exit code, against our own server over an engine without a
model."""

import asyncio
import json
import re
import tomllib
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from bench.instant_server import InstantServer
from bench.serving import driver
from bench.serving.arguments import parse, settings
from bench.serving.command import main
from bench.serving.records import Record
from jaxsgl.config import ServerConfig
from jaxsgl.interface import Unavailable
from tests.actors.waiting import until
from tests.server.conftest import serve

SMALL = ("--num-prompts", "12", "--input-len", "8", "--output-len", "5", "--vocab-size", "120")
QUICK = (*SMALL, "--settle", "0", "--no-progress", "--max-concurrency", "3")


@pytest.fixture
async def served():
    async with serve(ServerConfig()) as served:
        yield served


async def bench(*flags):
    return await asyncio.to_thread(main, list(flags))


@asynccontextmanager
async def listening(app: web.Application):
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def read(path):
    return json.loads(Path(path).read_text())


async def test_the_promised_command(served, tmp_path, capsys):
    """Its own flags, with a rate that does not take so long."""
    path = str(tmp_path / "bench_result.json")
    promised = (
        f"--backend sglang --url {served.url} --num-prompts 1000 --request-rate 128 "
        f"--duration 60 --output {path}"
    ).split()
    args = parse(promised)
    assert (args.max_concurrency, args.dataset, args.duration) == (None, "random", 60)
    short = ["--request-rate", "2000", "--num-prompts", "50", *SMALL[2:], "--settle", "0"]
    assert await bench(*promised, *short) == 0
    result = read(path)
    summary = result["summary"]
    assert (result["bench"], result["settings"]["backend"]) == ("serving", "sglang")
    assert len(result["requests"]) == summary["complete"] == 50
    assert len(served.engine.requests) == 51  # and the warm-up
    absent = {name for name, value in summary.items() if value is None}
    assert absent <= {"device_utilisation", "device_memory_bytes", "cache_hit_rate"}
    assert summary["cached_share"] == 0.5
    for request in result["requests"]:
        assert request["sent_s"] >= request["due_s"]
        assert len(request["event_s"]) == request["output_len"] == 5
    table = capsys.readouterr().out
    assert re.search(r"^device utilisation +(n/a|[\d.]+%)$", table, re.M)
    assert re.search(r"^time to first token( +[\d,.]+){4}$", table, re.M)


def test_the_command_is_installed():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert project["scripts"]["jaxsgl-bench"] == "bench.serving.command:main"


@pytest.mark.parametrize("backend", ["sglang", "jaxsgl", "vllm", "openai", "openai-chat"])
@pytest.mark.parametrize("dataset", ["random", "shared-prefix", "multi-turn", "tree"])
async def test_every_back_end_and_data_set(served, backend, dataset, tmp_path):
    path = str(tmp_path / "result.json")
    flags = ["--backend", backend, "--dataset", dataset, "--prefix-len", "4", "--turns", "2"]
    assert await bench(*QUICK, *flags, "--url", served.url, "--output", path) == 0
    assert read(path)["summary"]["complete"] == 12
    turns = sorted((r["conversation"], r["turn"]) for r in read(path)["requests"])
    assert turns[:3] == [(0, 0), (0, 1), (1, 0)] or dataset != "multi-turn"


async def test_schemas_reach_the_server(served):
    assert await bench(*QUICK, "--dataset", "json-schema", "--url", served.url) == 0
    grammars = [str(request.sampling.grammar) for request in served.engine.requests]
    assert all("additionalProperties" in grammar for grammar in grammars)


async def test_a_whole_chat_is_sent_with_every_turn(served):
    flags = ["--backend", "openai-chat", "--dataset", "multi-turn", "--turns", "3"]
    assert (
        await bench(*QUICK, *flags, "--num-prompts", "3", "--warmup", "0", "--url", served.url) == 0
    )
    roles = [[m["role"] for m in r.prompt.messages] for r in served.engine.requests]
    assert [len(each) for each in roles] == [2, 4, 6]
    assert roles[2] == ["system", "user", "assistant", "user", "assistant", "user"]


async def test_a_refusing_server_fails_the_warm_up(served, tmp_path, capsys):
    path = str(tmp_path / "result.json")
    served.engine.refusal = Unavailable("not now")
    assert await bench(*QUICK, "--url", served.url, "--output", path) == 1
    assert read(path)["summary"]["errors_by_kind"] == {"warm_up_http_503": 1}
    assert await bench(*QUICK, "--url", served.url, "--output", path, "--warmup", "0") == 1
    assert read(path)["summary"]["errors_by_kind"] == {"http_503": 12}
    assert "http_503 12" in capsys.readouterr().out


async def test_errors_in_streams_are_counted(served, tmp_path):
    path = str(tmp_path / "result.json")
    served.engine.break_after = (2, RuntimeError("on purpose"))
    assert await bench(*QUICK, "--warmup", "0", "--url", served.url, "--output", path) == 1
    # the server breaks the connection behind its error event; which of them is seen is a race
    kinds = read(path)["summary"]["errors_by_kind"]
    assert kinds.keys() <= {"server_error", "disconnected"} and sum(kinds.values()) == 12


async def test_a_server_that_dies_in_mid_run_leaves_a_partial_result(tmp_path, monkeypatch):
    path = str(tmp_path / "result.json")
    records: list[Record] = []

    def noted(*fields):
        records.append(Record(*fields))
        return records[-1]

    monkeypatch.setattr(driver, "Record", noted)
    async with serve(ServerConfig()) as served:
        served.engine.hold_after = 2
        flags = ["--warmup", "0", "--url", served.url, "--output", path]
        running = asyncio.create_task(bench(*QUICK, *flags))
        await until(lambda: [len(record.event_s) for record in records] == [2, 2, 2])
        for connection in list(served.runner.server.connections):
            connection.transport.abort()
        await served.runner.cleanup()
        assert await running == 1
    result = read(path)
    kinds = result["summary"]["errors_by_kind"]
    assert kinds.keys() <= {"disconnected", "connect"} and kinds["disconnected"] >= 3
    assert len(result["requests"]) == sum(kinds.values()) == 12
    assert [len(request["event_s"]) for request in result["requests"][:3]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (["--timeout", "0.2"], "timeout"),
        (["--drain", "0.2", "--num-prompts", "3"], None),
    ],
)
async def test_a_server_that_never_answers(served, tmp_path, flags, kind):
    path = str(tmp_path / "result.json")
    served.engine.hold_after = 0
    flags = [*QUICK, "--warmup", "0", *flags, "--url", served.url, "--output", path]
    assert await bench(*flags) == 1
    summary = read(path)["summary"]
    assert summary["errors_by_kind"] == ({kind: 12} if kind else {})
    assert summary["unfinished"] == (0 if kind else 3)
    await until(lambda: not served.engine.open)


async def test_a_picture_of_the_run(served, tmp_path):
    path = tmp_path / "plot.png"
    assert await bench(*QUICK, "--url", served.url, "--plot", str(path)) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


async def test_a_sweep(served, tmp_path, capsys):
    path, plot = str(tmp_path / "sweep.json"), tmp_path / "sweep.html"
    flags = ["--sweep", "max-concurrency=1,4", "--goodput", "e2e:60000", "--plot", str(plot)]
    assert await bench(*QUICK, *flags, "--url", served.url, "--output", path) == 0
    summary = read(path)["summary"]
    assert [point["value"] for point in summary["points"]] == [1, 4]
    assert summary["knee"] in (1, 4) and summary["best_goodput"] in (1, 4)
    assert all(point["summary"]["goodput"]["share"] == 1 for point in summary["points"])
    assert "knee" in capsys.readouterr().out and "<svg" in plot.read_text()
    asked = [request.prompt.token_ids for request in served.engine.requests]
    assert len({tuple(ids) for ids in asked}) == 2 * 12 + 1


async def test_two_servers_in_turn_on_the_same_prompts(served, tmp_path, capsys):
    path = str(tmp_path / "both.json")
    other = InstantServer()
    async with listening(other.app()) as other_url:
        flags = ["--url", served.url, "--interleave", other_url, "--output", path]
        assert await bench(*QUICK, *flags, "--rounds", "3") == 0
    asked = sorted(list(request.prompt.token_ids) for request in served.engine.requests)
    assert asked == sorted(each.body["prompt"] for each in other.served)
    assert len(asked) == 13
    first, second = read(path), read(tmp_path / "both.second.json")
    assert (first["settings"]["url"], second["settings"]["url"]) == (served.url, other_url)
    for result in (first, second):
        assert sorted(request["conversation"] for request in result["requests"]) == list(range(12))
    assert "ttft mean" in capsys.readouterr().out
    assert await bench("--compare", path, str(tmp_path / "both.second.json")) == 0
    assert "second/first" in capsys.readouterr().out


async def test_profiles_are_asked_for_around_the_load():
    calls: list[str] = []

    async def note(request):
        calls.append(request.path)
        return web.json_response({}, status=200 if "profile" in request.path else 503)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", note)
    async with listening(app) as url:
        assert await bench(*QUICK, "--profile", "--warmup", "0", "--url", url) == 1
    calls = [call for call in calls if call not in ("/metrics", "/v1/models")]
    assert calls == ["/start_profile", *["/v1/completions"] * 12, "/stop_profile"]


async def test_a_server_without_profiles_is_named(capsys):
    async with listening(InstantServer().app()) as url:
        assert await bench(*QUICK, "--profile", "--url", url) == 2
    assert "start_profile: 404" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        "--dataset shared-prefix --prefix-len 8 --input-len 8",
        "--dataset file",
        "--burstiness 2",
        "--ramp 1:5",
        "--request-rate inf --ramp 1:5",
        "--request-rate 0",
        "--num-prompts 0",
        "--goodput ttft",
        "--plot out.gif",
        "--extra-body 3",
        "--header key",
        "--sweep seed=1,2",
        "--interleave http://x --sweep request-rate=1,2",
        "--num 3",
    ],
)
def test_settings_that_do_not_go_together(flags, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(flags.split())
    assert exit_info.value.code == 2
    assert capsys.readouterr().err


def test_what_is_kept_of_the_settings_is_json_and_no_secret():
    args = parse(["--request-rate", "inf", "--header", "Authorization: Bearer secret"])
    kept = json.dumps(settings(args), allow_nan=False)
    assert "secret" not in kept and '"request_rate": "inf"' in kept
    ramped = parse(["--request-rate", "9", "--ramp", "1:5"])
    assert settings(ramped)["ramp"] == {"from_rate": 1.0, "over_s": 5.0}


@pytest.mark.parametrize("content", [None, "{", '{"bench": "offline"}'])
def test_a_file_that_is_no_result(content, tmp_path, capsys):
    path = tmp_path / "result.json"
    if content is not None:
        path.write_text(content)
    assert main(["--compare", str(path), str(path)]) == 2
    assert "jaxsgl-bench:" in capsys.readouterr().err
