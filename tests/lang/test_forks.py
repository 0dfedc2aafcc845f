"""Forks, joins, copies and branches, on a fake back end."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest

import jaxsgl as sgl
from jaxsgl.interface import EngineError
from tests.lang.fake_backend import HANG, FakeBackend


def last_word(text: str) -> str:
    return text.split()[-1].upper()


def test_forks_go_their_own_ways_and_are_gathered(backend: FakeBackend) -> None:
    backend.reply = last_word

    @sgl.function
    def program(s: Any) -> None:
        s += "prefix" + sgl.gen("before")
        forks = s.fork(3)
        forks += " and"
        forks += [" a", " b", " c"]
        forks += lambda i: f" {i}"
        forks += sgl.gen("x") + sgl.gen("y")
        forks[1] += " more"
        assert len(forks) == 3 and [fork["before"] for fork in forks] == ["PREFIX"] * 3
        forks.join()
        s += " end " + str(s["x"])

    state = program.run(backend=backend)
    assert state["x"] == ["0", "1", "2"] and state["y"] == ["00", "11", "22"]
    assert state.text() == "prefixPREFIX end ['0', '1', '2']"
    assert [text for text in backend.commits] == ["prefixPREFIX"]
    assert state.get_meta_info("x")["parts"] == [{"finish_reason": {"type": "stop"}}] * 3


@pytest.mark.parametrize("end", ["join", "end", "error", "fail"])
def test_what_forks_have_in_common_is_kept_until_the_last_of_them_ends(
    backend: FakeBackend, end: str
) -> None:
    backend.reply = lambda text: EngineError("broken") if text.endswith("bad") else "ok"

    @sgl.function
    def program(s: Any) -> None:
        s += "common"
        forks = s.fork(3)
        forks[0] += sgl.gen("x")
        forks[0].text()
        if end == "error":
            forks[1] += "bad" + sgl.gen("x")
            with pytest.raises(EngineError):
                forks[1].text()
        assert backend.held == ["common"]
        if end == "fail":
            raise ValueError("mine")
        if end == "join":
            for fork in forks:
                fork += sgl.gen("y")
            for fork in list(forks)[1:]:
                fork += sgl.gen("x")
            forks.join()
            s.text()
            backend.wait_until_released()

    with contextlib.suppress(ValueError):
        program.run(backend=backend)
    backend.wait_until_released()
    assert backend.commits == ["common"]


def test_one_fork_is_not_worth_a_commit(backend: FakeBackend) -> None:
    sgl.function(lambda s: s.fork(1).join()).run(backend=backend)
    assert not backend.commits


def test_joining_by_appending(backend: FakeBackend) -> None:
    backend.reply = last_word

    @sgl.function
    def program(s: Any) -> None:
        s += "p"
        forks = s.fork(2)
        forks += [sgl.user(" a"), " b"]
        forks += sgl.gen("x")
        forks.join("concate_and_append")
        s += "!"

    state = program.run(backend=backend)
    assert state.text() == "p<user> a</>A</> bB!"
    assert state.messages() == [{"role": "user", "content": " a"}]
    assert "x" not in state


def test_a_joined_fork_takes_no_more(backend: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        forks = s.fork(2)
        forks.join()
        forks[0] += "late"

    with pytest.raises(sgl.ProgramError, match="has been joined"):
        program.run(backend=backend)


def test_forks_that_set_different_variables_cannot_be_gathered(backend: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        forks = s.fork(2)
        forks[0] += sgl.gen("x")
        forks.join()

    with pytest.raises(sgl.ProgramError, match="not every fork sets 'x'"):
        program.run(backend=backend)


def test_forks_of_forks(backend: FakeBackend) -> None:
    backend.reply = last_word

    @sgl.function
    def tree(s: Any) -> None:
        s += "root"
        outer = s.fork(3)
        for i, state in enumerate(outer):
            state += f" {i}"
            inner = state.fork(3)
            inner += lambda j: f".{j}"
            inner += sgl.gen("leaf")
            inner.join()
        outer.join()

    assert tree.run(backend=backend)["leaf"] == [[f"{i}.{j}" for j in "012"] for i in "012"]


def test_a_copy_binds_its_variables_as_they_are(backend: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "a"
        with s.copy() as twin:
            twin += "b" + sgl.gen("x")
        s += "c" + s["x"]

    assert program.run(backend=backend).text() == "acok"


def test_a_fork_costs_no_thread(backend: FakeBackend) -> None:
    backend.reply = lambda text: HANG
    seen: list[set[threading.Thread]] = []

    @sgl.function
    def program(s: Any) -> None:
        s += "a"
        before = set(threading.enumerate())
        idle = s.fork(10_000)
        busy = s.fork(500)
        busy += sgl.gen("x")
        s.text()
        seen.append(set(threading.enumerate()) - before)
        assert len(idle) == 10_000
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        program.run(backend=backend)
    assert seen == [set()]


def test_branches(backend: FakeBackend) -> None:
    backend.reply = last_word

    @sgl.function
    def program(s: Any) -> None:
        s += "question"
        with sgl.branch() as one:
            one += " one" + sgl.gen("height")
            with sgl.branch() as inner:
                inner += " inner" + sgl.gen("deep")
        with sgl.branch(name="b2") as two:
            two += " two" + sgl.gen("height")
        with sgl.branch(inherit=False) as three:
            three += "three" + sgl.gen("alone")
        s += f" {s['height']} {s['b2.height']} {s['deep']}"

    state = program.run(backend=backend)
    assert state.text() == "question ONE TWO INNER"
    assert (state["height"], state["b2.height"], state["alone"]) == ("ONE", "TWO", "THREE")
    texts = [text for text, _ in backend.asked]
    assert sorted(texts) == ["question one", "question oneONE inner", "question two", "three"]


def test_branches_run_beside_each_other(backend: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        with sgl.branch() as a:
            a += sgl.gen("a")
        with sgl.branch() as b:
            b += sgl.gen("b")

    backend.reply = lambda text: "ok"
    backend.wait_for_running = 2
    state = program.run(backend=backend)
    assert (state["a"], state["b"], backend.max_running) == ("ok", "ok", 2)


def test_branches_whose_variables_clash(backend: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        for _ in range(2):
            with sgl.branch() as b:
                b += sgl.gen("x")

    with pytest.raises(sgl.ProgramError, match=r"sgl.branch\(name='b'\).*s\['b.x'\]"):
        program.run(backend=backend)


def test_a_branch_needs_a_program() -> None:
    with pytest.raises(sgl.ProgramError, match="no program here"), sgl.branch():
        pass


def test_the_state_of_a_branch_is_current_within_its_block_only(backend: FakeBackend) -> None:
    @sgl.function
    def inner(s: Any) -> None:
        with sgl.branch() as b:
            b += sgl.gen("inner")

    @sgl.function
    def program(s: Any) -> None:
        s += "outer"
        other = inner.run(backend=backend)
        assert other["inner"] == "ok"
        with sgl.branch() as b:
            b += "!" + sgl.gen("x")

    program.run(backend=backend)
    assert [text for text, _ in backend.asked] == ["", "outer!"]
