"""The kernel bench runs, on a small scale, and counts right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import kernel_tasks, kernel_tuning, kernels
from bench.kernel_tasks import TINY, Heads, Work
from bench.kernel_timing import SMOKE, Peaks
from pallas_kernels.paged_decode.tuning import Tuning as DecodeTuning
from pallas_kernels.paged_prefill.tuning import Tuning as PrefillTuning


def test_every_operation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    kernels.main(["--smoke", "--json", str(path)])
    result = json.loads(path.read_text())
    assert [name.partition(":")[0] for name in result["summary"]] == list(kernels.OPS)
    table = capsys.readouterr().out
    for name, line in result["summary"].items():
        assert line["us"] > 0 and line["gb_per_s"] > 0
        assert name in table


def test_layouts_are_swept() -> None:
    decode = kernel_tuning.sweep_decode(
        TINY,
        2,
        (20, 40),
        [DecodeTuning(16, 1), DecodeTuning(16, 2)],
        "float32",
        SMOKE,
        interpret=True,
    )
    best = kernel_tuning.best(decode, num_best=1)
    assert list(best) == ["decode 2 x 20", "decode 2 x 40"]
    assert all(len(timings) == 1 for timings in best.values())
    prefill = kernel_tuning.sweep_prefill(
        TINY, (2, 3, 5), [PrefillTuning(16, 16)], "float32", SMOKE, interpret=True
    )
    assert [timing.tuning for timing in prefill] == [PrefillTuning(16, 16)]


def test_work_of_attention_by_hand() -> None:
    heads = Heads("", q_heads=4, kv_heads=2, head_dim=8)
    work = kernel_tasks.attention_work(heads, np.array([3, 1]), np.array([5, 2]), "float32", "int8")
    # 7 keys and as many values of 2 x 8 bytes; 4 queries in and out of 4 x 8 x 4 bytes.
    assert work.num_bytes == 2 * 7 * 16 + 2 * 4 * 128
    # The queries see 3, 4, 5 and 2 keys.
    assert work.num_flops == 14 * 4 * (4 * 8)


def test_the_bound_is_the_longer_time() -> None:
    peaks = Peaks(num_bytes=100.0, num_flops=1000.0)
    assert peaks.bound_s(Work(200.0, 1000.0)) == 2.0
    assert peaks.bound_s(Work(200.0, 5000.0)) == 5.0
