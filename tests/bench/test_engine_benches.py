"""The benches of the engine and the front run, on a small scale."""

import json

import pytest

from bench import (
    front_end,
    host_cost,
    host_path,
    host_step,
    load_speed,
    offline,
    overload,
    slow_readers,
)
from tests.loading.tiny_models import tiny_model, write_folder
from tests.offline.local_replica import open_engine


def test_offline_throughput():
    bench = offline.OfflineBench(num_prompts=5, input_len=6, output_len=7)
    with open_engine() as engine:
        summary = offline.run(engine, bench)
        stats = engine.stats()
    assert stats.generated_tokens == 6 * 7
    assert stats.prompt_tokens == 6 * 6
    elapsed_s = summary["batch_s"]
    assert summary["batch_output_tokens_per_s"] == pytest.approx(5 * 7 / elapsed_s)
    assert summary["batch_total_tokens_per_s"] == pytest.approx(5 * (6 + 7) / elapsed_s)
    assert summary["single_ttft_s"] > 0 and summary["single_decode_tokens_per_s"] > 0


def test_the_scheduler_alone():
    summary = host_step.scheduler_alone(num_rows=4, num_steps=20)
    assert set(summary) == {"scheduler_plan_ms", "scheduler_apply_ms"}
    assert all(0 < figures["p50"] <= figures["p99"] for figures in summary.values())


def test_host_costs(capsys):
    small = ["--leaves", "250", "--request-len", "1300", "--rows", "4", "--prompt-len", "20"]
    host_cost.main([*small, "--repeats", "10"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "tree_request_ms", "step_plan_ms", "step_apply_ms",
    ]  # fmt: skip
    for line in lines:
        _, _, best, _, median = line.split()
        assert 0 < float(best) <= float(median)


def test_the_host_path_of_a_burst():
    summary = host_path.burst(num_rows=4, prompt_len=40, num_tokens=3, repeats=2)
    assert summary["burst_steps"] == {"best": 3, "median": 3}
    for name in ("before_first_dispatch", "after_last_result", "beyond_the_steps"):
        figures = summary[f"burst_{name}_ms"]
        assert 0 < figures["best"] <= figures["median"]


def test_a_large_tree_has_the_leaves_it_says():
    tree = host_cost.LargeTree(250, num_spare_pages=200)
    assert sum(not node.children for node in nodes(tree._tree.namespaces[""].root)) == 250
    assert tree.request_ms(1300) > 0
    assert sum(not node.children for node in nodes(tree._tree.namespaces[""].root)) == 251


def nodes(node):
    yield node
    for child in node.children.values():
        yield from nodes(child)


async def test_the_front_end():
    summary = await front_end.run(num_streams=8, num_tokens=20, step_ms=5)
    assert 1 <= summary["tokens_per_event"] <= 20
    assert summary["events_per_s"] * summary["tokens_per_event"] == pytest.approx(
        summary["tokens_per_s"]
    )
    assert summary["bytes_per_event"] > 50


async def test_overload():
    summary = await overload.run(num_requests=60, queue=8, slots=4, num_tokens=40, step_ms=5)
    assert set(summary["statuses"]) == {"200", "429"}
    assert sum(summary["statuses"].values()) == 60 and summary["statuses"]["200"] >= 12
    assert summary["unfinished"] == summary["refused_without_retry_after"] == 0
    assert summary["server_refusal_ms_p99"] > 0 and summary["num_health"] > 0


async def test_slow_readers():
    summary = await slow_readers.run(6, 1, 1, num_tokens=20, step_ms=2, num_runs=1)
    assert summary["inter_token_ms_p99"] > 0 and summary["ratio"] > 0
    assert summary["cut_off_per_run"] == [0]  # too few tokens to fill anybody's buffers


def test_load_speed(tmp_path, capsys, monkeypatch):
    """Of a checkpoint that it writes, in several files."""
    monkeypatch.setattr(load_speed, "FILE_BYTES", 60_000)
    shapes = write_folder(tmp_path / "shapes", tiny_model())
    out, written = tmp_path / "result.json", tmp_path / "written"
    load_speed.main(["--model-path", str(shapes), "--write", str(written), "--output", str(out)])
    assert "load_gb_per_s" in capsys.readouterr().out
    summary = json.loads(out.read_text())["summary"]
    assert len(list(written.glob("*.safetensors"))) > 1
    sizes = [file.stat().st_size for file in written.glob("*.safetensors")]
    # Twice what the files have: a CPU keeps float32.
    assert summary["weights_gb"] * 1e9 == pytest.approx(2 * sum(sizes), rel=0.1)
    assert summary["load_s"] > 0 and summary["one_stream_gb_per_s"] > 0
