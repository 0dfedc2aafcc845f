"""The tutorial of docs/language.md and the programs of examples/language/, on the default model."""

from __future__ import annotations

import importlib
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import jaxsgl as sgl
from bench.language import LanguageBench, fork_figures
from jaxsgl.offline.offline_engine import OfflineEngine
from tests.e2e.jax_options import jax_options_restored
from tests.e2e.server_process import ROOT, ServerProcess

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/language.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def engine() -> Iterator[OfflineEngine]:
    """Its programs are those of the server that other tests use."""
    with jax_options_restored(), sgl.Engine() as engine:
        yield engine


CHECKS: dict[str, Callable[[list[str]], object]] = {
    "few_shot_qa": lambda answers: answers[0] == "Paris" and len(answers) == 16,
    "extraction": lambda answers: re.fullmatch(
        r'\{"name": "[A-Za-z ]{1,20}", "age": [0-9]{1,3}\}', answers[0]
    ),
    "branches": lambda answers: answers[0],
    "tree_of_thought": lambda answers: re.fullmatch("-?[0-9]+", answers[0]),
    "judge": lambda answers: len(answers) == 6 and all(mark in "12345" for mark in answers[:5]),
    "chat": lambda answers: len(answers) == 24 and all(answers),
    "json_extraction": lambda answers: all(
        re.match("(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, [0-9]{1,2}: ", line) for line in answers
    ),
    "rag": lambda answers: "1871" in answers[0] and len(answers) == 12,
}


QUICK = ("few_shot_qa", "extraction")


def test_every_example_is_checked() -> None:
    assert {path.stem for path in (ROOT / "examples/language").glob("*.py")} == CHECKS.keys()


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in CHECKS],
)
def test_an_example(engine: OfflineEngine, name: str) -> None:
    answers = importlib.import_module(f"examples.language.{name}").run(engine)
    assert CHECKS[name](answers), answers
    # Places come back when the last step that was under way is over.
    until = time.monotonic() + 60
    while (stats := engine.stats()).locks and time.monotonic() < until:
        time.sleep(0.01)
    assert (stats.locks, stats.num_running, stats.num_waiting, stats.recompiles) == (0, 0, 0, 0)


@sgl.function
def everything(s: Any) -> None:
    """Constants that meet answers within words and characters, stop texts, choices, turns."""
    s += sgl.system("Tu réponds en français, très brièvement. 日本語も少し。")
    s += sgl.user("Count: one two three")
    s += sgl.assistant("one, tw" + sgl.gen("a", max_tokens=9, stop=["ee", ","]) + "éé 🦜")
    forks = s.fork(3)
    forks += lambda n: sgl.user(f"{n}") + sgl.assistant(sgl.gen("b", max_tokens=6, seed=n))
    forks += sgl.user("yes or no") + sgl.assistant(sgl.select("c", ["yes", "no", " n\u00f6"]))
    forks.join("concate_and_append")
    s += "  \n" + sgl.gen("d", regex="[a-zé]{3,9}", max_tokens=12) + "." + sgl.gen(max_tokens=3)


def test_text_and_token_ids_agree_byte_for_byte(engine: OfflineEngine) -> None:
    tokenizer = engine.tokenizer
    special = {i: text.encode() for i, text in tokenizer.special_token_texts.items()}
    for seed in range(3):
        state = everything.run(backend=engine, seed=seed)
        ids = state.token_ids()
        data = b"".join(special.get(i) or tokenizer.token_bytes[i] for i in ids)
        assert data.decode(errors="replace") == state.text()
        assert len(ids) > 60 and special.keys() & set(ids)


@pytest.mark.parametrize("num_items", [8, pytest.param(100, marks=pytest.mark.long)])
def test_choices_are_scored_as_the_reference_scores_them(
    engine: OfflineEngine, num_items: int
) -> None:
    items = json.loads((ROOT / "tests/goldens/smollm2_select.json").read_text())
    assert len(items) == 100

    @sgl.function
    def choose(s: Any, text: str, choices: list[str]) -> None:
        s += text + sgl.select("choice", choices)

    items = items[:: 100 // num_items][:num_items]
    runs = choose.run_batch([(item["text"], item["choices"]) for item in items], backend=engine)
    for run, item in zip(runs, items, strict=True):
        scores = run.get_meta_info("choice")["scores"]
        assert np.abs(np.subtract(scores, item["scores"])).max() < 1e-3, item["text"]
        # Not those of other choices, by more than rounding.
        assert np.abs(np.subtract(scores, item["scores"][::-1])).max() > 1e-2
        assert run["choice"] == item["choices"][int(np.argmax(item["scores"]))]


@pytest.mark.long
def test_a_thousand_forks(engine: OfflineEngine) -> None:
    figures = fork_figures(engine, LanguageBench())
    begin = figures["beginning_tokens"]
    assert 400 <= begin <= 600
    # Of each fork its own few tokens are computed, and what of the beginning fills no page.
    assert figures["fork_tokens_computed"] <= begin + 1000 * 24
    assert figures["fork_memory_mib"] <= 200
    assert figures["fork_threads"] <= 4


@pytest.mark.long
def test_a_batch_of_500_rows_is_in_order(engine: OfflineEngine) -> None:
    @sgl.function
    def repeat(s: Any, word: str) -> None:
        s += f"{word} {word} {word}" + sgl.gen("x", max_tokens=4)

    words = [f"{chr(97 + n % 26)}{n}" for n in range(500)]
    runs = repeat.run_batch([(word,) for word in words], backend=engine, temperature=0)
    prompts = [f"{word} {word} {word}" for word in words]
    answers = engine.generate(prompts, {"max_new_tokens": 4, "temperature": 0})
    assert [run["x"] for run in runs] == [answer["text"] for answer in answers]


def test_the_tutorial_runs_from_top_to_bottom(engine: OfflineEngine, server: ServerProcess) -> None:
    """Last in this module: it ends by shutting the engine down."""
    script = "\n".join(BLOCKS)
    for stands_for_itself in ("sgl.Engine()", "http://127.0.0.1:30000"):
        assert script.count(stands_for_itself) == 1
    script = script.replace("sgl.Engine()", "given").replace("http://127.0.0.1:30000", server.url)
    names: dict[str, Any] = {"__name__": "tutorial", "given": engine}
    exec(script, names)
    assert len(BLOCKS) == 11 and names["begin"]
