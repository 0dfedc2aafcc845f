"""Settings from flags and from a file, and that no flag is dead."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxsgl.command_line import Flags, parse_command_line
from jaxsgl.config import ConfigError, EngineConfig, ServerConfig
from jaxsgl.serve import CONFIGS

ROOT = Path(__file__).parents[1]


def parsed(*args: str) -> tuple[EngineConfig, ServerConfig]:
    return parse_command_line(args, "prog", "", EngineConfig, ServerConfig)


def config_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_nothing_given_is_what_the_fields_say():
    assert parsed() == (EngineConfig(), ServerConfig())


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--model", "x"], "model_path", "x"),
        (["--tp", "4"], "mesh", "tp=4"),
        (["--tp-size", "4"], "mesh", "tp=4"),
        (["--tensor-parallel-size", "2", "--dp", "3"], "mesh", "tp=2,dp=3"),
        (["--dp-size", "2"], "mesh", "dp=2"),
        (["--data-parallel-size", "2"], "mesh", "dp=2"),
        (["--ep", "2"], "mesh", "ep=2"),
        (["--ep-size", "2"], "mesh", "ep=2"),
        (["--expert-parallel-size", "2", "--tp", "2"], "mesh", "tp=2,ep=2"),
        (["--max-running-requests", "7"], "max_num_reqs", 7),
        (["--priority-scheduling-preemption-threshold", "3"], "priority_preemption_threshold", 3),
        (["--watchdog-timeout", "9"], "step_timeout_s", 9.0),
        (["--disable-overlap-schedule"], "overlap", False),
        (["--disable-overlap"], "overlap", False),
        (["--disable-overlap", "--enable-overlap-schedule"], "overlap", True),
        (["--disable-overlap", "--overlap-schedule"], "overlap", True),
        (["--disable-overlap", "--overlap"], "overlap", True),
        (["--disable-overlap", "--enable-overlap"], "overlap", True),
        (["--disable-chunked-prefill"], "chunked_prefill", False),
        (["--disable-chunked-prefill", "--chunked-prefill"], "chunked_prefill", True),
        (["--disable-chunked-prefill", "--enable-chunked-prefill"], "chunked_prefill", True),
        (["--disable-mixed-chunk", "--enable-mixed-chunk"], "mixed_chunk", True),
        (["--disable-mixed-chunk", "--mixed-chunk"], "mixed_chunk", True),
        (["--disable-fair-queue"], "fair_queue", False),
        (["--disable-fair-queue", "--fair-queue"], "fair_queue", True),
        (["--disable-fair-queue", "--enable-fair-queue"], "fair_queue", True),
        (["--disable-radix-cache"], "radix_cache", False),
        (["--disable-radix-cache", "--enable-radix-cache"], "radix_cache", True),
        (["--disable-radix-cache", "--radix-cache"], "radix_cache", True),
        (["--disable-flashinfer"], "disable_flashinfer", True),
    ],
)
def test_other_names(flags: list[str], name: str, value: object):
    assert getattr(parsed(*flags)[0], name) == value


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--tp", "2", "--mesh", "tp=2"], "--mesh and --tp say the same twice"),
        (["--tp", "0"], "argument --tp/--tp-size/--tensor-parallel-size: must be at least 1"),
        (["--max-queued-requests", "-1"], "argument --max-queued-requests: must be at least 0"),
        (["--drain-timeout-s", "nan"], "argument --drain-timeout-s: must be at least 0"),
        (["--drain-timeout-s", "x"], "argument --drain-timeout-s: invalid float value: 'x'"),
        (["--max-num", "2"], "unrecognized arguments: --max-num 2"),
    ],
)
def test_bad_flags(flags: list[str], why: str):
    with pytest.raises(ConfigError, match=f"^{re.escape(why)}$"):
        parsed(*flags)


def test_flags_win_over_the_file(tmp_path: Path):
    path = config_file(
        tmp_path,
        """
        model-path: some/model   # names as on the command line, with - or _
        max_num_reqs: 5
        tp: 2
        drain-timeout-s: 1.5
        disable-radix-cache: true
        enable-overlap: false
        mixed-chunk: true
        skip-tokenizer-init: true
        disable-flashinfer: false
        log-level: warning
        """,
    )
    engine, server = parsed("--config", path, "--log-level", "debug", "--mesh", "tp=4")
    assert engine == EngineConfig(
        model_path="some/model",
        max_num_reqs=5,
        mesh="tp=4",
        radix_cache=False,
        overlap=False,
        skip_tokenizer_init=True,
    )
    assert server == ServerConfig(drain_timeout_s=1.5, log_level="debug")
    assert parsed("--config", path, "--radix-cache")[0].radix_cache


def test_an_empty_file(tmp_path: Path):
    assert parsed("--config", config_file(tmp_path, "# nothing\n")) == parsed()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("prot: 1", "'prot' is no setting"),
        ("config: other.yaml", "'config' is no setting"),
        ("port: http", "argument --port: invalid int value: 'http'"),
        ("port: [1, 2]", "port takes one value"),
        ("port: {a: 1}", "port takes texts or numbers"),
        ("port: true", "port takes texts or numbers"),
        ("port:", "port takes texts or numbers"),
        ("radix-cache: 1", "radix-cache is true or false"),
        ("log-level: loud", "argument --log-level: invalid choice: 'loud'"),
        ("tp: 2\nmesh: tp=2", "--mesh and --tp say the same twice"),
        ("port: 1\nport: 2", "'port' is there twice"),
        ("- port", "no mapping of settings to values"),
        ("port: [", "not YAML: while parsing"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML: could not determine"),
        ("a: \x00", "not YAML: unacceptable character"),
        ("[" * 5000, "not YAML: "),
        ("x: " + "a" * (1 << 20), "larger than 1048576 bytes"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, why: str):
    path = config_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        parsed("--config", path)
    assert str(caught.value).startswith(f"--config {path}: {why}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"No such file or directory$"):
        parsed("--config", str(tmp_path / "none"))


def test_every_flag_is_named_in_a_test_or_a_document():
    """A flag that nothing speaks of is dead or a secret."""
    written = [
        path.read_text()
        for folder, kind in (("tests", "*.py"), ("docs", "*.md"))
        for path in (ROOT / folder).rglob(kind)
    ]
    words = {word for text in written for word in re.findall(r"--[a-z][a-z0-9-]*", text)}
    names = Flags("prog", "", CONFIGS).names
    assert len(names) > 40
    assert sorted(set(names) - words) == []


def test_help_has_a_line_for_every_flag():
    command = [sys.executable, "-m", "jaxsgl.launch_server", "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr == ""
    groups = re.split(r"\n\n(?=[a-z ]+:\n)", ended.stdout)
    assert len(groups) > 6  # usage, options, and what the fields say
    told = {flag for group in groups[1:] for flag in re.findall(r"--[a-z][a-z0-9-]*", group)}
    assert set(Flags("prog", "", CONFIGS).names) <= told
