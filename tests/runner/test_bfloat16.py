"""The default model in bfloat16 finds the same tokens best as in float32, but for near ties.

In float32 and through HuggingFace's bfloat16 the answers come from goldens/make_goldens.py.
"""

import json
from pathlib import Path

import pytest

from jaxsgl.config import EngineConfig
from jaxsgl.interface import MAX_TOP_LOGPROBS
from jaxsgl.loading.model_files import open_model
from jaxsgl.runner.build import build_runner
from tests.runner.driver import Driver

GOLDENS = Path(__file__).parents[1] / "goldens"
MIN_AGREEMENT = 0.97
NEAR_TIE = 0.3
"""In logits."""


def prompts():
    answers = json.loads((GOLDENS / "smollm2_greedy.json").read_text())["prompts"]
    others = json.loads((GOLDENS / "smollm2_bfloat16.json").read_text())["prompts"]
    for answer, other in zip(answers, others, strict=True):
        assert answer["name"] == other["name"]
        yield answer["prompt_ids"], answer["output_ids"], other["margins"], other["bfloat16_ids"]


def best_ids(driver, prompt_ids, output_ids):
    """The likeliest token at each place of the answer, given what the answer has before it."""
    request = driver.request(prompt_ids + output_ids[:-1])
    best: list[int] = []
    while request.computed < len(request.prompt):
        work = driver.prefill(request, chunk=128, score=True)
        best += driver.step([work], top_logprobs=MAX_TOP_LOGPROBS).top_ids[:, 0].tolist()
    driver.release(request)
    return best[len(prompt_ids) - 1 :]


def misses(found, expected, margins):
    """Margins of the tokens that were not found."""
    return [m for f, e, m in zip(found, expected, margins, strict=True) if f != e]


@pytest.mark.parametrize(
    "platform",
    [pytest.param("cpu", marks=pytest.mark.long), pytest.param("gpu", marks=pytest.mark.gpu)],
)
def test_teacher_forced_answers_agree(platform, capsys):
    config = EngineConfig(
        dtype="bfloat16", context_length=512, max_num_reqs=1, chunked_prefill_size=128
    )
    checkpoint, _ = open_model(config)
    runner = build_runner(config, checkpoint, lambda *report: None)
    assert runner.layout.mesh.devices.flat[0].platform == platform
    driver, ours, theirs, total = Driver(runner), [], [], 0
    for prompt_ids, output_ids, margins, huggingface_ids in prompts():
        found = best_ids(driver, prompt_ids, output_ids)
        ours += misses(found, output_ids, margins)
        theirs += misses(huggingface_ids, output_ids, margins)
        total += len(output_ids)
    runner.close()
    with capsys.disabled():
        print(f"\nbfloat16 misses of {total}: ours {sorted(ours)}, HuggingFace {sorted(theirs)}")  # noqa: T201
    assert len(ours) <= (1 - MIN_AGREEMENT) * total
    assert all(margin < NEAR_TIE for margin in ours)
