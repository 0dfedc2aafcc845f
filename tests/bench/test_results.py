"""Figures of a run, and the file they go to."""

import json
import random

from bench.prompts import random_prompts, shared_prefix_prompts
from bench.results import show, spread, write_result


def test_spread_is_by_nearest_rank():
    assert spread([]) == {}
    assert spread([3.0]) == {"mean": 3.0, "p50": 3.0, "p90": 3.0, "p99": 3.0}
    values = [float(n) for n in range(1, 101)]
    random.Random(0).shuffle(values)
    assert spread(values) == {"mean": 50.5, "p50": 50.0, "p90": 90.0, "p99": 99.0}


def test_a_result_file(tmp_path, capsys):
    path = tmp_path / "result.json"
    summary = {"rate": 12.5, "many": 12345.6, "ttft_s": {"p50": 0.25}, "nothing": {}}
    write_result(str(path), "example", {"seed": 1}, summary, [{"sent_s": 0.5}])
    result = json.loads(path.read_text())
    assert (result["bench"], result["settings"], result["summary"], result["requests"]) == (
        "example", {"seed": 1}, summary, [{"sent_s": 0.5}],
    )  # fmt: skip
    write_result(None, "example", {}, summary)
    show(summary)
    assert capsys.readouterr().out.splitlines() == [
        "rate     12.5",
        "many     12,346",
        "ttft_s   p50 0.25",
        "nothing  n/a",
    ]


def test_prompts_depend_on_their_seed_alone():
    prompts = random_prompts(random.Random(1), 4, 10, 100)
    assert prompts == random_prompts(random.Random(1), 4, 10, 100)
    assert prompts != random_prompts(random.Random(2), 4, 10, 100)
    assert {len(prompt) for prompt in prompts} == {10}
    assert all(32 <= token_id < 100 for prompt in prompts for token_id in prompt)


def test_prompts_that_share_prefixes():
    rng = random.Random(1)
    prompts = shared_prefix_prompts(rng, 12, 20, 30000, num_prefixes=3, prefix_len=15)
    assert {len(prompt) for prompt in prompts} == {20}
    assert len({tuple(prompt[:15]) for prompt in prompts}) == 3
    assert len({tuple(prompt[15:]) for prompt in prompts}) == 12
