"""What the bench of the language counts, on a fake engine."""

from __future__ import annotations

import time

from bench.ideal_cache import IdealCache
from bench.language import LanguageBench, PeakUse, RecordingBackend, fork_figures, many_forks
from jaxsgl.config import EngineConfig
from jaxsgl.offline.offline_engine import OfflineEngine
from tests.fake_runner import FakeRunner, make_limits
from tests.lang.test_on_an_engine import ProgramLetters
from tests.offline.local_replica import FakeFactory


class AnyLetters(ProgramLetters):
    """Of other characters something, too."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        letters = "".join(chr(ord("A") + ord(each) % 8) for each in text)
        return super().encode(letters)

    encode_continuation = encode


def fake_engine() -> OfflineEngine:
    limits = make_limits(num_pages=513, max_pages_per_row=64)
    return OfflineEngine(EngineConfig(), AnyLetters(), FakeFactory(FakeRunner(limits)))


def test_an_ideal_cache_by_hand() -> None:
    cache = IdealCache(page_size=4)
    assert cache.look_up([1, 2, 3, 4, 5]) == 0
    cache.insert([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert cache.look_up([1, 2, 3, 4, 5, 6, 7, 0, 0]) == 4
    assert cache.look_up([1, 2, 3, 4, 5, 6, 7, 8, 9]) == 8
    assert cache.look_up([1, 2, 3, 4]) == 3, "the last token is computed for its logits"
    assert cache.look_up([5, 6, 7, 8, 9]) == 0, "a page is what follows its beginning"


def test_what_passes_is_counted() -> None:
    with fake_engine() as engine:
        backend = RecordingBackend(engine, page_size=4)
        many_forks.run(beginning="A" * 100, size=10, backend=backend)
        figures = backend.recorder.figures()
        stats = engine.stats()
    # What is computed before the forks is none of their prompts, and no gift of the cache.
    prompt_tokens, cached_tokens = stats.prompt_tokens - 100, stats.cached_tokens - 100
    assert figures["prompt_tokens"] == prompt_tokens
    assert figures["output_tokens"] == 10 * 4
    assert figures["hit_rate_percent"] == 100 * cached_tokens / prompt_tokens
    assert figures["of_ideal_percent"] == 100
    num_all = prompt_tokens + 40
    assert figures["ideal_speed_up"] == num_all / (num_all - cached_tokens)


def test_forks_compute_their_beginning_once() -> None:
    bench = LanguageBench(num_forks=200, prefix_len=200)
    with fake_engine() as engine:
        figures = fork_figures(engine, bench)
    begin = figures["beginning_tokens"]
    assert 150 < begin < 250 and figures["fork_prompt_tokens"] > 200 * begin
    assert begin <= figures["fork_tokens_computed"] <= begin + 200 * 10
    assert figures["fork_threads"] < 10


def test_memory_that_came_and_went_is_noticed() -> None:
    with PeakUse() as peak:
        taken = bytearray(64 << 20)
        for at in range(0, len(taken), 4096):
            taken[at] = 1
        until_s = time.monotonic() + 60
        while peak.memory_bytes <= 32 << 20 and time.monotonic() < until_s:
            time.sleep(0.01)  # it looks now and then
        del taken
    assert peak.memory_bytes > 32 << 20
