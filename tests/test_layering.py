"""What modules may load and may not contain. Who may import whom is import-linter's to check."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("jaxsgl", "pallas_kernels", "server", "bench")
    for path in (ROOT / package).rglob("*.py")
)

READS_ENVIRONMENT = {"jaxsgl/serve.py"}
IMPORTS_IN_FUNCTIONS: set[str] = set()
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "pickle.loads", "marshal.loads", "yaml.load"}


def package_modules(package: str) -> list[str]:
    return [path[:-3].replace("/", ".") for path in SOURCES if path.startswith(f"{package}/")]


@pytest.mark.parametrize(
    "modules",
    [
        ["jaxsgl"],
        package_modules("jaxsgl/scheduling"),
        package_modules("jaxsgl/cache"),
        package_modules("jaxsgl/grammar"),
        package_modules("server"),
        ["jaxsgl.replicas.pool"],
        ["jaxsgl.serve"],
    ],
    ids=["jaxsgl", "scheduling", "cache", "grammar", "server", "replicas.pool", "serve"],
)
def test_jax_is_not_loaded_with(modules):
    assert modules
    code = f"import sys, {', '.join(m.removesuffix('.__init__') for m in modules)}\n"
    code += "sys.exit(str(sorted({'jax', 'jaxlib', 'flax', 'transformers'} & set(sys.modules))))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert loaded.stderr.strip() == "[]"


def test_importing_the_package_loads_next_to_nothing():
    code = "import sys; n = len(sys.modules); import jaxsgl; sys.exit(len(sys.modules) - n)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode in range(1, 10)


def defects(tree: ast.Module, source: str) -> Iterator[str]:
    """What the house rules forbid, as `line: what`."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Import | ast.ImportFrom):
                        if source not in IMPORTS_IN_FUNCTIONS:
                            yield f"{inner.lineno}: import in a function"
            case ast.Attribute(value=ast.Name("os"), attr="environ" | "getenv" as name):
                if source not in READS_ENVIRONMENT:
                    yield f"{node.lineno}: os.{name}"
            case ast.Import(names):
                for alias in names:
                    if alias.name.partition(".")[0] in UNSAFE_MODULES:
                        yield f"{node.lineno}: import {alias.name}"
            case ast.ImportFrom(module=str(module)):
                if module.partition(".")[0] in UNSAFE_MODULES:
                    yield f"{node.lineno}: import {module}"
            case ast.Call(func=func) if ast.unparse(func) in UNSAFE_CALLS:
                yield f"{node.lineno}: {ast.unparse(func)}()"


@pytest.mark.parametrize("source", SOURCES)
def test_house_rules(source):
    assert not list(defects(ast.parse((ROOT / source).read_text()), source))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f():\n    import json", ["2: import in a function"]),
        ("async def f():\n    if 1:\n        from a import b", ["3: import in a function"]),
        ("import os\nx = os.environ.get('X')", ["2: os.environ"]),
        ("import os\nx = os.getenv('X')", ["2: os.getenv"]),
        ("import pickle", ["1: import pickle"]),
        ("from marshal import loads", ["1: import marshal"]),
        ("x = eval('1')", ["1: eval()"]),
        ("import json, os\nx = json.loads('1')", []),
    ],
)
def test_the_house_rules_find_what_they_forbid(code, found):
    assert list(defects(ast.parse(code), "jaxsgl/x.py")) == found
