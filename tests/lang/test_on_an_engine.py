"""Programs on the offline engine around a fake runner: requests, pages, shared beginnings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import MappingProxyType

import pytest

import jaxsgl as sgl
from jaxsgl.config import EngineConfig
from jaxsgl.offline.offline_engine import OfflineEngine
from tests.fake_runner import FakeRunner, expected_tokens, make_limits
from tests.offline.local_replica import TOKEN_BYTES, FakeFactory, LetterTokenizer


class ProgramLetters(LetterTokenizer):
    special_token_texts = MappingProxyType[int, str]({})
    bos_token_id = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return super().encode(text)

    encode_continuation = encode


@pytest.fixture
def engine() -> Iterator[OfflineEngine]:
    runner = FakeRunner(make_limits(num_pages=257, max_pages_per_row=64))
    with OfflineEngine(EngineConfig(), ProgramLetters(), FakeFactory(runner)) as engine:
        yield engine
        until = time.monotonic() + 60
        while (stats := engine.stats()).locks and time.monotonic() < until:
            time.sleep(0.01)
        assert (stats.num_running, stats.num_waiting, stats.locks) == (0, 0, 0)
        assert stats.pages_free + stats.pages_cached == stats.pages_total


def test_ids_are_those_that_were_drawn(engine: OfflineEngine) -> None:
    @sgl.function
    def program(s):
        s += "PROMPT" + sgl.gen("x", max_tokens=5, seed=0, ignore_eos=True) + "END"
        s += sgl.gen("y", max_tokens=5, seed=0, ignore_eos=True)

    state = program.run(backend=engine)
    prompt = ProgramLetters().encode("PROMPT")
    drawn = expected_tokens(prompt, 5, ignore_eos=True)
    prompt += drawn + ProgramLetters().encode("END")
    assert state.token_ids() == prompt + expected_tokens(prompt, 5, ignore_eos=True)
    assert state.text().encode() == b"".join(TOKEN_BYTES[i] for i in state.token_ids())


def test_forks_share_their_beginning(engine: OfflineEngine) -> None:
    @sgl.function
    def program(s):
        s += "ABCD" * 25
        forks = s.fork(20)
        forks += lambda i: chr(65 + i) + sgl.gen("x", max_tokens=4)
        forks.join()

    program.run(backend=engine)
    stats = engine.stats()
    assert stats.prompt_tokens == 100 + 20 * 101 and stats.cached_tokens == 20 * 100


def test_nothing_is_computed_for_forks_of_an_engine_that_keeps_nothing() -> None:
    @sgl.function
    def program(s):
        s += "ABCD" * 25
        forks = s.fork(3)
        forks += sgl.gen("x", max_tokens=4)
        forks.join()

    config = EngineConfig(radix_cache=False)
    with OfflineEngine(config, ProgramLetters(), FakeFactory()) as engine:
        program.run(backend=engine)
        assert engine.stats().prompt_tokens == 3 * 100


def test_a_run_that_is_out_of_time_gives_its_pages_back(engine: OfflineEngine) -> None:
    @sgl.function
    def program(s):
        for _ in range(10_000):
            twin = s.fork(1)[0]
            twin += "ABCD" + sgl.gen(max_tokens=50, ignore_eos=True)
            twin.text()

    with pytest.raises(sgl.RunTimeout):
        program.run(backend=engine, timeout_s=0.1)
