"""The grammar options of the command line, and what becomes of them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from jaxsgl.actors.grammar_actor import GrammarSettings
from jaxsgl.command_line import parse_command_line
from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.engine import check_grammar_limits, grammar_settings
from jaxsgl.grammar.tables_folder import TablesFolder


def parsed(*args: str) -> EngineConfig:
    (config,) = parse_command_line(list(args), "prog", "", EngineConfig)
    return config


def test_defaults():
    assert grammar_settings(parsed()) == GrammarSettings()


@pytest.mark.parametrize(
    ("args", "changed"),
    [
        (["--grammar-backend", "lark"], {"json_schema_backend": "lark"}),
        (["--grammar-compile-timeout-s", "0.5"], {"compile_timeout_s": 0.5}),
        (["--grammar-cache-mb", "3"], {"max_grammar_bytes": 3 << 20}),
        (["--grammar-mask-cache-mb", "2"], {"max_mask_bytes": 2 << 20}),
    ],
)
def test_each_option(args: list[str], changed: dict[str, Any]):
    assert grammar_settings(parsed(*args)) == dataclasses.replace(GrammarSettings(), **changed)


def test_the_folder(tmp_path: Path):
    settings = grammar_settings(
        parsed("--grammar-cache-dir", str(tmp_path), "--grammar-cache-mb", "3")
    )
    assert settings.folder == TablesFolder(tmp_path, 3 << 20)


@pytest.mark.parametrize(
    "args",
    [
        ["--grammar-backend", "outlines"],
        ["--grammar-compile-timeout-s", "0"],
        ["--grammar-compile-timeout-s", "nan"],
        ["--grammar-cache-mb", "0"],
        ["--grammar-mask-cache-mb", "-1"],
    ],
)
def test_what_is_refused(args: list[str]):
    with pytest.raises(ConfigError, match=args[0]):
        check_grammar_limits(parsed(*args))
