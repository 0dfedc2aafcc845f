"""Ratios of two runs, with the truth known."""

import numpy as np
import pytest

from bench.results import write_result
from bench.serving.comparison import Result, compare, comparison_lines
from bench.serving.records import Record
from tests.bench.serving.made_runs import record

SAME = {"seed": 0, "dataset": "random"}


def result(rng, scale, *, count=200, settings=SAME, noise=0.2, difficulty=None):
    ttft_s = scale * (rng.exponential(1.0, count) if difficulty is None else difficulty)
    ttft_s = ttft_s * np.exp(rng.normal(0, noise, count))
    records = [record(n, n / 10, float(each), 0.1) for n, each in enumerate(ttft_s)]
    ends = [each.end_s for each in records if each.end_s is not None]
    return Result(settings, records, max(ends))


def by_name(ratios):
    return {ratio.name: ratio for ratio in ratios}


def test_two_runs_of_one_kind_show_no_difference_and_half_the_speed_does():
    rng = np.random.default_rng(0)
    first, same = result(rng, 1.0), result(rng, 1.0, settings=SAME | {"seed": 1})
    slower = result(rng, 2.0, settings=SAME | {"seed": 2})
    ratios = by_name(compare(first, same))
    assert not ratios["ttft mean"].differs
    assert ratios["ttft mean"].low < ratios["ttft mean"].ratio < ratios["ttft mean"].high
    ratio = by_name(compare(first, slower))["ttft mean"]
    assert ratio.differs and ratio.low < 2 < ratio.high
    assert {"ttft p50", "tpot p90", "output tokens/s", "requests/s"} <= set(ratios)
    assert "e2e p99" not in ratios  # of 200 requests, 2 are beyond it


def test_pairs_see_what_the_noise_between_prompts_hides():
    rng = np.random.default_rng(1)
    difficulty = rng.exponential(1.0, 200)
    first = result(rng, 1.0, noise=0.02, difficulty=difficulty)
    second = result(rng, 1.05, noise=0.02, difficulty=difficulty)
    paired = by_name(compare(first, second))["ttft mean"]
    assert paired.differs and paired.low < 1.05 < paired.high
    unpaired = Result({**SAME, "seed": 1}, second.records, second.elapsed_s)
    assert not by_name(compare(first, unpaired))["ttft mean"].differs


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(60):
        settings = SAME | {"seed": trial + 1}
        a, b = result(rng, 1.0, count=60), result(rng, 1.5, count=60, settings=settings)
        ratio = by_name(compare(a, b, seed=trial))["ttft mean"]
        held += ratio.low <= 1.5 <= ratio.high
    assert 51 <= held <= 60


def test_only_what_both_have_is_compared():
    rng = np.random.default_rng(0)
    nothing = Result(SAME, [Record(0, 0, 0.0, error="connect")], 0.0)
    assert compare(result(rng, 1.0), nothing) == []
    assert len(comparison_lines([])) == 1


def test_a_result_file_is_read_back(tmp_path):
    path = str(tmp_path / "result.json")
    records = [vars(record(n)) for n in range(3)]
    write_result(path, "serving", SAME, {"elapsed_s": 4.0}, records)
    read = Result.read(path)
    assert read == Result(SAME, [record(n) for n in range(3)], 4.0)
    write_result(path, "offline", {}, {})
    with pytest.raises(ValueError, match="offline"):
        Result.read(path)
    write_result(path, "serving", SAME, {"elapsed_s": 4.0}, [{"prompt": 1}])
    with pytest.raises(ValueError, match="not a result"):
        Result.read(path)
