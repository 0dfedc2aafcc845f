"""Programs from their first word to their end, on a fake back end."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest

import jaxsgl as sgl
from jaxsgl.interface import InvalidRequest, RegexGrammar
from tests.lang.fake_backend import FakeBackend


@sgl.function
def greet(s: Any, name: str, mood: str = "calm") -> str:
    s += sgl.system("Be kind.")
    s += sgl.user(f"I am {name}, {mood}.")
    s += sgl.assistant("Hello " + sgl.gen("reply", max_tokens=7, stop="\n") + "!")
    return "returned"


def test_a_whole_program(backend: FakeBackend) -> None:
    state = greet.run(name="Ann", backend=backend)
    assert state["reply"] == "ok" and "reply" in state and "x" not in state
    assert state.text() == ("<system>Be kind.</><user>I am Ann, calm.</><assistant>Hello ok!</>")
    assert state.messages() == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "I am Ann, calm."},
        {"role": "assistant", "content": "Hello ok!"},
    ]
    assert state.get_meta_info("reply") == {"finish_reason": {"type": "stop"}}
    assert state.token_ids() == [ord(letter) for letter in state.text()]
    assert (state.ret_value, state.error()) == ("returned", None)
    assert state.variables() == {"reply": "ok"}
    ((text, sampling),) = backend.asked
    assert text.endswith("<assistant>Hello ") and (sampling.max_tokens, sampling.stop) == (
        7,
        ("\n",),
    )


def test_the_forms_with_blocks(backend: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s.system("A")
        with s.user():
            s += "B"
        s += sgl.assistant_begin()
        with s.var_scope("scope"):
            s += "C" + sgl.gen("x")
        s += sgl.assistant_end()
        s["given"] = 5
        assert (s["scope"], s["given"], s["x"]) == ("Cok", 5, "ok")
        assert s.text() == "<system>A</><user>B</><assistant>Cok</>"
        assert [message["role"] for message in s.messages()] == ["system", "user", "assistant"]

    assert program.run(backend=backend)["scope"] == "Cok"


def test_parameters_of_the_run_fill_in_what_a_gen_leaves_out(backend: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a") + sgl.gen("b", max_tokens=3, temperature=0.5)

    program.run(backend=backend, temperature=0, max_new_tokens=9, stop="x")
    a, b = [sampling for _, sampling in backend.asked]
    assert (a.max_tokens, a.temperature, a.stop) == (9, 0.0, ("x",))
    assert (b.max_tokens, b.temperature, b.stop) == (3, 0.5, ("x",))
    program.run(backend=backend)
    assert backend.asked[2][1].max_tokens == 128


def test_an_argument_comes_before_a_parameter_of_that_name(backend: FakeBackend) -> None:
    @sgl.function
    def weather(s: Any, temperature: str) -> None:
        s += f"It is {temperature}. " + sgl.gen("x")

    assert weather.run(temperature="hot", backend=backend).text() == "It is hot. ok"
    assert backend.asked[0][1].temperature == 1.0


def test_binding_and_calling(backend: FakeBackend) -> None:
    bound = greet.bind(mood="glad")
    assert "glad" in bound.run(name="Bo", backend=backend).text()
    assert "calm" in greet(name="Bo", backend=backend).text()

    @sgl.function
    def outer(s: Any) -> str:
        return bound(s, "Cy")

    state = outer.run(backend=backend)
    assert state.ret_value == "returned" and state["reply"] == "ok" and "Cy, glad" in state.text()
    with pytest.raises(TypeError, match="no argument 'age'"):
        greet.bind(age=3)
    with pytest.raises(TypeError, match="missing a required argument: 'name'"):
        greet.run(backend=backend)


def test_a_form_arrives_and_its_variable_is_parsed(backend: FakeBackend) -> None:
    backend.reply = lambda text: ' "hi"' if text.endswith("q") else " 42"

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen_int("n") + "q" + sgl.gen_string("t") + sgl.gen("r", regex="[0-9 ]+")
        s += sgl.gen("f", dtype=float) + sgl.gen("loose", regex=".*", strict_complete=False)

    state = program.run(backend=backend)
    assert (state["n"], state["t"], state["r"], state["f"]) == (42, "hi", " 42", 42.0)
    assert state.text() == ' 42q "hi" 42 42 42'
    samplings = [sampling for _, sampling in backend.asked]
    assert samplings[2].grammar == RegexGrammar("[0-9 ]+")
    assert [sampling.strict_complete for sampling in samplings] == [True] * 4 + [False]


class Person:
    """What this project needs of a pydantic model."""

    @staticmethod
    def model_json_schema() -> dict[str, Any]:
        return {"type": "object", "properties": {"b": {}, "a": {}}}

    @staticmethod
    def model_validate_json(text: str) -> tuple[str, str]:
        return ("read", text)


def test_json_schemas(backend: FakeBackend) -> None:
    backend.reply = lambda text: '{"a": 1}'

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("d", json_schema={"type": "object"}) + sgl.gen("p", json_schema=Person)
        s += sgl.gen("t", json_schema='{"type": "object"}')

    state = program.run(backend=backend)
    assert (state["d"], state["p"]) == ({"a": 1}, ("read", '{"a": 1}'))
    schemas = [getattr(sampling.grammar, "schema", "") for _, sampling in backend.asked]
    assert schemas[1] == '{"type": "object", "properties": {"b": {}, "a": {}}}'
    assert schemas[0] == schemas[2] == '{"type": "object"}'


def test_an_answer_that_was_cut_short_is_an_error_of_its_own(backend: FakeBackend) -> None:
    backend.reply = lambda text: '{"a": '

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("d", json_schema={})

    with pytest.raises(sgl.InvalidAnswer, match=r"'d' cannot be read.*stop"):
        program.run(backend=backend)


def test_select(backend: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Is it " + sgl.select("a", ["x", "y"]) + sgl.gen("b", choices=["p", "q"])

    state = program.run(backend=backend)
    assert (state["a"], state["b"], state.text()) == ("y", "q", "Is it yq")
    assert state.get_meta_info("a") == {"method": "token_length_normalized"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sgl.gen(regex="a", dtype=int), "regex and dtype exclude"),
        (lambda: sgl.gen(choices=["a"], temperature=1.0), "scored, not drawn"),
        (lambda: sgl.gen(choices_method="token_length_normalized"), "needs choices"),
        (lambda: sgl.gen(dtype=list), "dtype"),
        (lambda: sgl.gen(json_schema=5), "json_schema must be"),
        (lambda: sgl.select("a", []), "must be a list"),
        (lambda: sgl.select("a", "yes"), "must be a list"),
        (lambda: sgl.select("a", ["a", ""]), "none of them empty"),
        (lambda: sgl.select("a", ["a"], choices_method="best"), "is not one of"),  # type: ignore
        (lambda: sgl.user(5), "not int"),  # type: ignore
    ],
)
def test_what_makes_no_sense_is_said_where_it_is_written(make: Any, message: str) -> None:
    with pytest.raises(sgl.ProgramError, match=message):
        make()


@pytest.mark.parametrize(
    ("append", "message"),
    [
        (lambda s: s.__iadd__(None), "not NoneType"),
        (lambda s: s.__iadd__(sgl.user(sgl.user("a"))), "cannot begin within a user turn"),
        (lambda s: s.__iadd__(sgl.user_end()), "no user turn to end"),
        (lambda s: s.fork(0), "at least 1"),
        (lambda s: s.fork(2).join("sum"), "is not gather_variable"),
    ],
)
def test_what_a_state_refuses(backend: FakeBackend, append: Any, message: str) -> None:
    with pytest.raises(sgl.ProgramError, match=message):
        sgl.function(lambda s: append(s)).run(backend=backend)


def test_a_parameter_out_of_bounds_is_refused_where_it_is_appended(backend: FakeBackend) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a", temperature=5.0)

    with pytest.raises(InvalidRequest, match="temperature must be"):
        program.run(backend=backend)
    assert not backend.asked


def test_what_is_not_a_program() -> None:
    with pytest.raises(sgl.ProgramError, match="must be named s"):
        sgl.function(lambda state: None)

    async def program(s: Any) -> None: ...

    with pytest.raises(sgl.ProgramError, match="plain function"):
        sgl.function(program)


def test_reading_state_instead_of_s_is_warned_of_and_explained(backend: FakeBackend) -> None:
    source = "def program(s):\n    s += gen('x')\n    s += state['x']\n"
    names: dict[str, Any] = {"gen": sgl.gen}
    exec(source, names)  # as in a file of its own, where `state` is only assigned later
    with pytest.warns(UserWarning, match=r"program: .*write s\[...\]"):
        program = sgl.function(names["program"])
    with pytest.raises(NameError) as caught:
        program.run(backend=backend)
    assert caught.value.__notes__ == ["within a program, read a variable as s[...], not state[...]"]
    names["state"] = {"x": "California"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sgl.function(names["program"]).run(backend=backend).text() == "okCalifornia"


def test_batches_are_in_order_with_a_bar(backend: FakeBackend, capsys: Any) -> None:
    backend.reply = lambda text: text.upper()

    @sgl.function
    def program(s: Any, word: str) -> None:
        s += word + sgl.gen("x")

    rows = [{"word": f"w{i}"} if i % 2 else (f"w{i}",) for i in range(50)]
    states = program.run_batch(rows, backend=backend, progress_bar=True, num_threads=8)
    assert [state["x"] for state in states] == [f"W{i}" for i in range(50)]
    assert backend.max_running <= 8
    assert "50/50" in capsys.readouterr().err
    assert program.run_batch([], backend=backend) == []
    program.run_batch(rows, backend=backend)
    assert "50/50" not in capsys.readouterr().err


def test_batches_with_errors(backend: FakeBackend) -> None:
    backend.reply = lambda text: ValueError("no 3") if text == "3" else "ok"

    @sgl.function
    def program(s: Any, word: int) -> None:
        s += str(word) + sgl.gen("x")

    rows = [{"word": i} for i in range(6)]
    with pytest.raises(ValueError, match="no 3"):
        program.run_batch(rows, backend=backend)
    results = program.run_batch(rows, backend=backend, return_exceptions=True)
    assert isinstance(results[3], ValueError)
    assert [results[i]["x"] for i in (0, 1, 2, 4, 5)] == ["ok"] * 5


def test_the_default_back_end(backend: FakeBackend) -> None:
    sgl.set_default_backend(backend)
    try:
        assert greet.run("Di")["reply"] == "ok"
    finally:
        sgl.set_default_backend(None)


def test_the_language_loads_no_jax() -> None:
    code = "import sys, jaxsgl as s; s.function, s.branch, s.OpenAI; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
