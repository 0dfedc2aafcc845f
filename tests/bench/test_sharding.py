"""What the comparison of sharding specs reads off programs, and its command from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.collectives import read_collectives
from bench.host_step import TINY_MODEL
from bench.sharding import as_text, split_spec
from jaxsgl.config import ConfigError, EngineConfig

HLO = """
  %all-reduce.1 = f32[4,64]{1,0} all-reduce(%dot.1), channel_id=1
  %pair = (bf16[8]{0}, bf16[2,8]{1,0}) all-reduce(%a, %b), channel_id=2
  %start = (bf16[4,16]{1,0}, bf16[8,16]{1,0}) all-gather-start(%c), channel_id=3
  %done = bf16[8,16]{1,0} all-gather-done(%start)
  %moved = (s32[6]{0}, s32[6]{0}, u32[], u32[]) collective-permute-start(%d), channel_id=4
  %mask = pred[10]{0} all-gather(%e), channel_id=5
  %fusion = f32[4,64]{1,0} fusion(%all-reduce.1), calls=%all-reduce-like
"""


def test_collectives_are_counted_with_their_results() -> None:
    found = read_collectives(HLO)
    assert found.count == {"all-reduce": 2, "all-gather": 2, "collective-permute": 1}
    assert found.num_bytes == {
        "all-reduce": 4 * 64 * 4 + (8 + 16) * 2,
        "all-gather": 8 * 16 * 2 + 10,
        "collective-permute": 6 * 4,
    }


def test_a_spec_is_a_mesh_and_rules() -> None:
    config = EngineConfig(sharding_rules="mlp-only")
    assert split_spec("tp=2:mlp=tp,vocab=tp", config) == ("tp=2", "mlp=tp,vocab=tp")
    assert split_spec("fsdp=2,tp=2", config) == ("fsdp=2,tp=2", "mlp-only")
    with pytest.raises(ConfigError, match="write it like tp=2"):
        split_spec("megatron", config)


def test_the_table_has_a_column_per_spec() -> None:
    lines = as_text({"tp=1": {"a": 1.0}, "tp=2:fsdp": {"a": 2.0, "b": 0.5}}).splitlines()
    assert [line.split() for line in lines] == [
        ["tp=1", "tp=2:fsdp"],
        ["a", "1", "2"],
        ["b", "-", "0.5"],
    ]


@pytest.mark.long
def test_specs_are_compared(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_MODEL))
    output, plot = tmp_path / "out.json", tmp_path / "plot.png"
    command = [
        *(sys.executable, "-m", "bench.sharding", "--model-path", str(tmp_path)),
        *("--load-format", "dummy", "--skip-tokenizer-init", "--rows", "1,2", "--steps", "4"),
        *("--input-len", "20", "--specs", "tp=1 tp=2 tp=2:fsdp tp=2:replicated"),
        *("--compilation-cache-dir", str(tmp_path), "--output", str(output), "--plot", str(plot)),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert ended.returncode == 0, ended.stderr
    table = json.loads(output.read_text())["summary"]
    one, megatron, fsdp, replicated = table.values()
    assert "all-reduces" not in one and replicated["weights_mib"] == one["weights_mib"]
    # Two per layer, and the embedding's.
    assert megatron["all-reduces"] == 2 * 2 + 1
    assert megatron["weights_mib"] < 0.6 * one["weights_mib"]
    assert megatron["kv_mib"] == one["kv_mib"] / 2
    # Every matrix of every layer but the tied head.
    assert fsdp["all-gathers"] >= 4 * 2
    assert fsdp["weights_mib"] < 0.6 * one["weights_mib"]
    assert all(figures["step_ms_2"] > 0 for figures in table.values())
    assert plot.stat().st_size > 10_000
