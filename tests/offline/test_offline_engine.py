"""The calls of the offline API, against a runner whose answers are known."""

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jaxsgl.interface import (
    InvalidRequest,
    OperationFailed,
    OperationRefused,
    SamplingParams,
    Unavailable,
)
from jaxsgl.offline.offline_engine import OfflineEngine
from jaxsgl.replicas.launch import StartError
from tests.actors.scheduler_rig import HeldRunner
from tests.actors.waiting import until
from tests.fake_runner import FakeRunner, expected_embedding, expected_tokens, make_limits
from tests.offline.local_replica import TOKEN_BYTES, Leftovers, open_engine

ROOT = str(Path(__file__).parents[2])
SHORT = {"max_new_tokens": 6, "sampling_seed": 0, "ignore_eos": True}
ENDLESS = SHORT | {"max_new_tokens": 100}


def expected_text(prompt: list[int], num_tokens: int) -> str:
    tokens = expected_tokens(prompt, num_tokens, ignore_eos=True)
    return b"".join(TOKEN_BYTES[token_id] for token_id in tokens).decode()


def check_idle(engine: OfflineEngine) -> None:
    """Everything of every request is given back, and the next answer is right."""
    assert engine.generate("IDLE", SHORT)["text"] == expected_text([9, 4, 12, 5], 6)
    while (stats := engine.stats()).slots_free < stats.slots_total:
        time.sleep(0.001)  # a step that mentions the request may still run
    assert stats.num_running == stats.num_waiting == stats.locks == 0
    assert stats.pages_free + stats.pages_cached == stats.pages_total
    assert not engine._engine._aborted


@pytest.fixture
def engine():
    leftovers = Leftovers()
    with open_engine() as engine:
        yield engine
        check_idle(engine)
    assert not leftovers()


@pytest.fixture
def held():
    """A runner and its engine. Steps last until the test permits their end."""
    leftovers = Leftovers()
    runner = HeldRunner()
    with open_engine(runner, max_queued_requests=4) as engine:
        yield runner, engine
        runner.let_all_end()
        check_idle(engine)
    assert not leftovers()


def test_one_prompt(engine):
    answer = engine.generate("ABC", SHORT, rid="r")
    assert answer == {
        "text": expected_text([1, 2, 3], 6),
        "output_ids": expected_tokens([1, 2, 3], 6, ignore_eos=True),
        "meta_info": {
            "id": "r",
            "finish_reason": {"type": "length", "length": 6},
            "prompt_tokens": 3,
            "completion_tokens": 6,
            "cached_tokens": 0,
            "weight_version": "default",
        },
    }
    sampling = SamplingParams(max_tokens=6, seed=0, ignore_eos=True)
    assert engine.generate(input_ids=[1, 2, 3], sampling_params=sampling)["text"] == answer["text"]
    again = engine.generate("ABC" * 4, SHORT)
    assert engine.generate("ABC" * 4, SHORT)["meta_info"]["cached_tokens"] == 11
    engine.flush_cache()
    assert engine.generate("ABC" * 4, SHORT)["text"] == again["text"]


def test_a_list_comes_back_in_its_order(engine, capsys):
    prompts = [[n % 60 + 1, n % 7 + 1] for n in range(50)]
    params = [SHORT | {"max_new_tokens": n % 5 + 1} for n in range(50)]
    answers = engine.generate(input_ids=prompts, sampling_params=params, progress_bar=True)
    assert [answer["output_ids"] for answer in answers] == [
        expected_tokens(prompt, n % 5 + 1, ignore_eos=True) for n, prompt in enumerate(prompts)
    ]
    assert "50/50" in capsys.readouterr().err
    assert engine.generate([], SHORT) == []
    assert len(engine.generate(["A"], SHORT, progress_bar=False)) == 1
    assert capsys.readouterr().err == ""


def test_more_prompts_than_the_queue_takes_wait():
    runner = FakeRunner(make_limits(num_slots=2, max_tokens=8))
    with open_engine(runner, max_queued_requests=1) as engine:
        prompts = [[n % 60 + 1] for n in range(60)]
        answers = engine.generate(input_ids=prompts, sampling_params=SHORT)
        assert [answer["output_ids"] for answer in answers] == [
            expected_tokens(prompt, 6, ignore_eos=True) for prompt in prompts
        ]
        check_idle(engine)


def test_prompts_of_token_ids_that_come_together_share_every_step():
    runner = FakeRunner(make_limits(num_slots=8, max_tokens=64))
    with open_engine(runner) as engine:
        prompts = [[row + 1, 2, 3] for row in range(8)]
        params = {"max_new_tokens": 5, "ignore_eos": True}
        engine.generate(input_ids=prompts, sampling_params=params)
    assert [plan.num_rows for plan in runner.plans] == [8] * 5


def test_log_probabilities(engine):
    answer = engine.generate(
        input_ids=[5, 6, 7], sampling_params=SHORT, return_logprob=True, logprob_start_len=0
    )
    info = answer["meta_info"]
    assert [token_id for _, token_id, _ in info["input_token_logprobs"]] == [5, 6, 7]
    assert [token_id for _, token_id, _ in info["output_token_logprobs"]] == answer["output_ids"]


def check_growth(chunks: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    """Steps that are over in no time may share a chunk."""
    lengths = [len(chunk["output_ids"]) for chunk in chunks]
    assert lengths == sorted(set(lengths))
    assert all(whole["text"].startswith(chunk["text"]) for chunk in chunks)
    assert all(chunk["meta_info"]["finish_reason"] is None for chunk in chunks[:-1])
    assert {key: chunks[-1][key] for key in whole} == whole


def test_streams(engine):
    whole = engine.generate("ABC", SHORT, rid="r")
    check_growth(list(engine.generate("ABC", SHORT, rid="r", stream=True)), whole)
    whole = engine.generate(["A", "B"], SHORT, rid=["r", "s"])
    chunks = list(engine.generate(["A", "B"], SHORT, rid=["r", "s"], stream=True))
    for n in (0, 1):
        check_growth([chunk for chunk in chunks if chunk["index"] == n], whole[n])


def test_a_stream_brings_each_token_when_it_is_there(held):
    runner, engine = held
    stream = engine.generate("ABC", SHORT, stream=True)
    for num_tokens in range(1, 7):
        runner.permits.release()
        assert len(next(stream)["output_ids"]) == num_tokens


async def test_callers_with_an_event_loop(engine):
    whole, many = await asyncio.gather(
        engine.async_generate("ABC", SHORT, rid="r"), engine.async_generate(["A", "B"], SHORT)
    )
    assert whole["text"] == expected_text([1, 2, 3], 6)
    assert [answer["text"] for answer in many] == [expected_text([1], 6), expected_text([2], 6)]
    stream = await engine.async_generate("ABC", SHORT, rid="r", stream=True)
    check_growth([chunk async for chunk in stream], whole)
    assert engine.generate("ABC", SHORT, rid="r") == whole  # blocks their loop, but works


def test_a_bad_request_is_refused_and_the_others_of_its_call_end(engine):
    for arguments, line in [
        ({"prompt": ["A", ""], "sampling_params": ENDLESS}, "prompt must not be empty"),
        ({"input_ids": [[1], [999]], "sampling_params": ENDLESS}, "token ids must be from 0 to 60"),
        ({"prompt": ["A", "B"], "sampling_params": [ENDLESS, {"top_p": 2}]}, "top_p must be"),
        ({"prompt": "A", "sampling_params": {"max_new_tokens": 999}}, "at most 128 tokens fit"),
        ({"prompt": ["A", "B"], "rid": ["r", "r"]}, "request id 'r' is in use"),
        ({"prompt": "A", "logprob_start_len": -5}, "logprob_start_len"),
    ]:
        with pytest.raises(InvalidRequest, match=line):
            engine.generate(**arguments)
    with pytest.raises(InvalidRequest, match="prompt must not be empty"):
        list(engine.generate(["A", ""], ENDLESS, stream=True))
    assert engine.tokenize("AB") == [1, 2]
    assert engine.tokenize([{"role": "user", "content": "AB"}]) == [1, 2]
    with pytest.raises(InvalidRequest, match="messages must not be empty"):
        engine.tokenize([])


async def test_embeddings(engine):
    prompts = [[1, 2, 3], [4], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    for _ in range(2):  # the second time from the cache, all but the last tokens
        answers = engine.encode(input_ids=prompts)
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer["embedding"] == pytest.approx(expected_embedding(prompt), abs=1e-6)
            assert answer["meta_info"]["prompt_tokens"] == len(prompt)
            assert answer["meta_info"]["completion_tokens"] == 0
    assert answers[2]["meta_info"]["cached_tokens"] == 8
    one = engine.encode("ABC", rid="r")
    assert one["embedding"] == answers[0]["embedding"] and one["meta_info"]["id"] == "r"
    assert (await engine.async_encode(["ABC"]))[0]["embedding"] == one["embedding"]
    with pytest.raises(InvalidRequest, match="prompt must not be empty"):
        engine.encode("")
    with pytest.raises(InvalidRequest, match="embedding needs max_tokens 0"):
        engine.generate("A", SamplingParams(max_tokens=1, embedding=True))


async def test_aborting_what_runs_and_what_waits(held):
    runner, engine = held
    names = [f"r{n}" for n in range(8)]
    prompts = [[n + 1] for n in range(8)]
    asking = asyncio.create_task(engine.async_generate(None, ENDLESS, prompts, rid=names))
    runner.permits.release(3)
    await until(lambda: engine.stats().generated_tokens)
    for rid in ("r6", "r0", "nobody"):
        engine.abort(rid)
    engine.abort_all()
    runner.let_all_end()
    answers = await asking
    assert [a["meta_info"]["finish_reason"]["type"] for a in answers] == ["abort"] * 8
    for n, answer in enumerate(answers):
        token_ids = answer["output_ids"]
        assert token_ids == expected_tokens([n + 1], 100, ignore_eos=True)[: len(token_ids)]
    assert any(answer["output_ids"] for answer in answers)
    assert not any(answer["output_ids"] for answer in answers[4:])  # no more may run at a time


def test_a_stream_that_is_closed_ends_its_requests(held):
    runner, engine = held
    stream = engine.generate(["A", "B"], ENDLESS, stream=True)
    runner.permits.release(3)
    next(stream)
    stream.close()
    runner.let_all_end()
    check_idle(engine)
    assert engine.stats().generated_tokens < 200 + 6


async def test_an_async_stream_or_answer_that_is_given_up(held):
    runner, engine = held
    runner.permits.release(8)
    stream = await engine.async_generate("A", ENDLESS, stream=True)
    await anext(stream)
    await stream.aclose()
    asking = asyncio.create_task(engine.async_generate("B", ENDLESS))
    await until(lambda: engine.stats().num_running + engine.stats().num_waiting)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


def test_a_failed_step_costs_no_answer(caplog):
    with open_engine(FakeRunner(failing_steps={2})) as engine:
        answer = engine.generate("ABC", SHORT)
        assert answer["text"] == expected_text([1, 2, 3], 6)
        check_idle(engine)
    assert "a step failed" in caplog.text


def test_several_engines_and_threads_at_once():
    leftovers = Leftovers()
    answers: dict[int, str] = {}
    with open_engine() as one, open_engine() as other:
        assert one.model.name == "fake"

        def ask(n: int) -> None:
            answers[n] = (one, other)[n % 2].generate(input_ids=[n], sampling_params=SHORT)["text"]

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check_idle(one)
        check_idle(other)
    assert answers == {n: expected_text([n], 6) for n in range(1, 20)}
    assert not leftovers()


def test_the_trace_shows_every_part_of_a_step(engine):
    engine.generate("ABC", SHORT)
    events = [event for event in engine.step_trace()["traceEvents"] if event["ph"] == "X"]
    parts = [event["name"] for event in events if event["args"]["step"] == 1]
    assert sorted(parts) == ["apply", "device", "dispatch", "emit", "fetch", "plan"]
    for step in range(6):
        when = {e["name"]: e["ts"] for e in events if e["args"]["step"] == step}
        ordered = ["plan", "dispatch", "fetch", "apply", "emit"]
        assert sorted(ordered, key=when.__getitem__) == ordered
    assert all(event["dur"] >= 0 for event in events)


def test_an_engine_that_cannot_start_leaves_nothing():
    leftovers = Leftovers()
    with pytest.raises(StartError) as caught:
        open_engine(model_path="refuse")
    assert str(caught.value) == "no such model"
    assert not leftovers()


@pytest.mark.parametrize("how", ["whole", "stream"])
def test_shutting_down_ends_what_others_wait_for(how):
    leftovers = Leftovers()
    runner = HeldRunner()
    engine = open_engine(runner, max_queued_requests=1)
    outcomes: list[object] = []

    def ask() -> None:
        try:
            if how == "whole":
                outcomes.append(engine.generate("A", ENDLESS)["meta_info"]["finish_reason"])
            else:
                *_, last = engine.generate("A", ENDLESS, stream=True)
                outcomes.append(last["meta_info"]["finish_reason"])
        except Unavailable as error:
            outcomes.append(error)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    runner.permits.release(3)
    for asker in askers:
        asker.start()
    while engine.stats().generated_tokens < 2:
        time.sleep(0.001)
    threading.Timer(0.05, runner.let_all_end).start()
    engine.shutdown()
    engine.shutdown()
    for asker in askers:
        asker.join()
    assert len(outcomes) == 3
    assert not leftovers()
    for call in (engine.stats, engine.flush_cache, lambda: engine.generate("A", SHORT)):
        with pytest.raises(Unavailable, match="the engine has been shut down"):
            call()


@pytest.mark.parametrize(
    "last_words",
    ["pass", "stream = engine.generate('A', {'max_new_tokens': 100}, stream=True); next(stream)"],
    ids=["idle", "busy"],
)
def test_a_program_that_just_ends_is_not_held_up(last_words):
    code = f"""
        from tests.offline.local_replica import open_engine
        engine = open_engine()
        print(len(engine.generate("AB", {SHORT})["output_ids"]), flush=True)
        {last_words}
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "6\n", "")


def test_weights_and_memory_change_under_requests(held):
    runner, engine = held
    runner.let_all_end()
    assert engine.update_weights_from_disk("m", weight_version="v2").weight_version == "v2"
    assert engine.model.weight_version == "v2"
    with pytest.raises(OperationFailed, match="on purpose"):
        engine.update_weights_from_disk("fail")
    with pytest.raises(OperationRefused, match="on purpose"):
        engine.update_weights_from_disk("refuse")
    assert engine.release_memory_occupation().released == ("kv_cache", "weights")
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(engine.generate("ABC", SHORT)))
    waiting.start()
    while not engine.stats().num_waiting:
        time.sleep(0.001)
    assert engine.resume_memory_occupation(["weights"]).released == ("kv_cache",)
    assert engine.resume_memory_occupation().released == ()
    waiting.join()
    assert answers[0]["text"] == expected_text([1, 2, 3], 6)
    assert answers[0]["meta_info"]["weight_version"] == "v2"
