"""Grammars compiled in processes and threads, once each, within their limits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from jaxsgl.actors.grammar_actor import GrammarActor, GrammarSettings
from jaxsgl.actors.grammar_workers import NUM_WORKERS, GrammarWorkers
from jaxsgl.grammar.compiled import TableGrammar
from jaxsgl.grammar.errors import GrammarError
from jaxsgl.grammar.llguidance_engine import LlguidanceGrammar
from jaxsgl.grammar.tables_folder import TablesFolder
from jaxsgl.interface import (
    ChoiceGrammar,
    EbnfGrammar,
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    RegexGrammar,
    SamplingParams,
)
from tests.actors.waiting import until
from tests.grammar.toy import SAMPLES, slow_grammar, toy_vocabulary

SLOW = LarkGrammar(slow_grammar())

type Open = Callable[..., GrammarActor]


@pytest.fixture
async def open_actor() -> AsyncIterator[Open]:
    before = {child.pid for child in psutil.Process().children()}
    actors: list[GrammarActor] = []

    def open_one(**settings: Any) -> GrammarActor:
        actors.append(GrammarActor(toy_vocabulary, GrammarSettings(**settings)))
        return actors[-1]

    yield open_one
    for actor in actors:
        await actor.stop()
    # What asyncio does about a process that was not even started takes a moment.
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    await until(lambda: {child.pid for child in psutil.Process().children()} <= before)


def workers() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if "jaxsgl.grammar.worker" in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (JsonObjectGrammar(), TableGrammar),
        (RegexGrammar("a+"), TableGrammar),
        (ChoiceGrammar(("a", "b")), TableGrammar),
        (EbnfGrammar('root ::= "a"'), TableGrammar),
        (JsonSchemaGrammar('{"type": "integer"}'), LlguidanceGrammar),
    ],
)
async def test_every_kind(open_actor, spec, kind):
    actor = open_actor()
    grammar = await actor.compile(spec)
    assert type(grammar) is kind
    assert await actor.compile(spec) is grammar
    assert len(workers()) == (kind is TableGrammar)


async def test_schemas_by_the_engine_of_all_others(open_actor):
    actor = open_actor(json_schema_backend="lark")
    assert type(await actor.compile(JsonSchemaGrammar('{"type": "integer"}'))) is TableGrammar


async def test_tables_survive_the_way_from_the_worker(open_actor):
    actor = open_actor()
    for text in SAMPLES.values():
        assert type(await actor.compile(LarkGrammar(text))) is TableGrammar


@pytest.mark.parametrize(
    ("spec", "message", "line"),
    [
        (RegexGrammar("(a"), "unterminated subpattern", None),
        (RegexGrammar(r"(a)\1"), "back-references", None),
        (RegexGrammar("(a{1000}){1000}"), "automaton states", None),
        (LarkGrammar('start: "a"\n\n%%%'), "Unexpected input", 3),
        (JsonSchemaGrammar("{"), "JSON", None),
        (JsonSchemaGrammar('{"$ref": "http://127.0.0.1:1/x"}'), "$ref", None),
        (JsonSchemaGrammar('{"not": {}}'), "schema is false", None),
        (JsonSchemaGrammar('{"items": ' * 5000 + "1" + "}" * 5000), "deep", None),
        (JsonSchemaGrammar('{"enum": [' + "1," * 999_999 + "1]}"), "longer than", None),
    ],
)
async def test_what_is_refused(open_actor, spec, message, line):
    actor = open_actor()
    for _ in range(2):  # the second is remembered
        with pytest.raises(GrammarError) as error:
            await actor.compile(spec)
        assert message in str(error.value) and "\n" not in str(error.value)
        assert error.value.line == line
    assert await actor.compile(RegexGrammar("ok"))


async def test_requests_for_one_grammar_share_its_compilation(open_actor, monkeypatch):
    asked: list[object] = []
    compile_ = GrammarWorkers.compile

    async def counted(self: GrammarWorkers, spec: Any) -> bytes:
        asked.append(spec)
        return await compile_(self, spec)

    monkeypatch.setattr(GrammarWorkers, "compile", counted)
    actor = open_actor()
    specs = [RegexGrammar("a+"), RegexGrammar("b+")] * 10
    grammars = await asyncio.gather(*map(actor.compile, specs))
    assert len({id(grammar) for grammar in grammars}) == 2
    assert asked == specs[:2]


async def test_a_compilation_beyond_its_time_is_killed_and_others_are_not_held_up(open_actor):
    actor = open_actor(compile_timeout_s=2.0)
    # Both workers have started before the time of the slow one begins.
    await asyncio.gather(*(actor.compile(RegexGrammar(name)) for name in ("one", "two")))
    started = workers()
    assert len(started) == NUM_WORKERS
    slow = asyncio.create_task(actor.compile(SLOW))
    await asyncio.sleep(0)
    await until(lambda: actor._compiling)
    for n in range(5):
        await actor.compile(RegexGrammar(f"other{n}"))
    assert not slow.done()
    with pytest.raises(GrammarError, match="takes more than 2 s"):
        await slow
    assert sum(worker.is_running() for worker in started) == NUM_WORKERS - 1
    await actor.compile(RegexGrammar("after"))


async def test_nobody_waits_any_more(open_actor):
    actor = open_actor()
    await actor.compile(RegexGrammar("first"))
    (worker,) = workers()
    waiting = [asyncio.create_task(actor.compile(SLOW)) for _ in range(2)]
    await until(lambda: not actor._workers._idle)
    waiting[0].cancel()
    await asyncio.wait({waiting[0]})
    assert worker.is_running() and actor._compiling
    waiting[1].cancel()
    await asyncio.wait({waiting[1]})
    await until(lambda: not worker.is_running())
    assert not actor._compiling
    again = asyncio.create_task(actor.compile(SLOW))
    await until(lambda: actor._compiling)
    again.cancel()
    await asyncio.wait({again})


async def test_a_worker_that_dies_is_replaced(open_actor):
    actor = open_actor()
    await actor.compile(RegexGrammar("first"))
    workers()[0].kill()
    with pytest.raises(GrammarError, match="memory"):
        await actor.compile(RegexGrammar("second"))
    await actor.compile(RegexGrammar("third"))
    assert len(workers()) <= NUM_WORKERS


async def test_a_worker_has_a_limit_of_memory(open_actor):
    actor = open_actor()
    await actor.compile(RegexGrammar("first"))
    (worker,) = workers()
    soft, hard = worker.rlimit(psutil.RLIMIT_AS)
    assert soft == hard == 1 << 30


async def test_many_grammars_stay_within_the_budget(open_actor):
    actor = open_actor(max_grammar_bytes=2 << 20)
    for n in range(60):
        await actor.compile(JsonSchemaGrammar(f'{{"const": {n}}}'))
        assert actor._kept.num_bytes <= 2 << 20
    assert 5 < len(actor._kept) < 40


async def test_constraints_are_ready_for_their_first_draw(open_actor):
    actor = open_actor()
    row = np.zeros(toy_vocabulary().row_len, np.uint32)
    for spec in (RegexGrammar("a+"), JsonSchemaGrammar('{"type": "integer"}')):
        constraint = await actor.constrain(SamplingParams(grammar=spec, max_tokens=5))
        assert constraint.copy_mask(0, row) and row.any()


async def test_the_check(open_actor):
    actor = open_actor(json_schema_backend="lark")
    report = await actor.check(LarkGrammar('start: "true" "x"'), b"tr")
    assert (report.engine, report.forced, report.prefix_taken_len) == ("lark", b"uex", 2)
    with pytest.raises(GrammarError):
        await actor.check(LarkGrammar("start: ("), b"")


async def test_tables_are_kept_on_disk(open_actor, tmp_path, monkeypatch):
    folder = TablesFolder(tmp_path / "new", 1 << 20)
    await open_actor(folder=folder).compile(RegexGrammar("a+"))
    (path,) = (tmp_path / "new").iterdir()

    async def refuse(self: GrammarWorkers, spec: Any) -> bytes:
        raise GrammarError("compiled again")

    with monkeypatch.context() as patched:
        patched.setattr(GrammarWorkers, "compile", refuse)
        await open_actor(folder=folder).compile(RegexGrammar("a+"))
        data = bytearray(path.read_bytes())
        data[40] ^= 1
        path.write_bytes(data)
        with pytest.raises(GrammarError, match="compiled again"):
            await open_actor(folder=folder).compile(RegexGrammar("a+"))
    path.write_bytes(b"")
    assert folder.read(RegexGrammar("a+")) is None
    assert folder.read(RegexGrammar("b+")) is None


def test_the_folder_stays_within_its_size(tmp_path: Path):
    folder = TablesFolder(tmp_path, 1000)
    for n in range(20):
        folder.write(RegexGrammar(str(n)), bytes(100))
        for path in tmp_path.iterdir():
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**9))
    assert len(list(tmp_path.iterdir())) == 1000 // 132
    assert folder.read(RegexGrammar("19")) == bytes(100)
    assert folder.read(RegexGrammar("0")) is None


def test_a_folder_that_cannot_be_written_to_keeps_nothing(tmp_path: Path):
    (tmp_path / "file").write_text("")
    folder = TablesFolder(tmp_path / "file", 1000)
    folder.write(RegexGrammar("a"), b"x")
    assert folder.read(RegexGrammar("a")) is None
