"""Finds a mistake of circulating examples: `state["x"]` where `s["x"]` is meant."""

from __future__ import annotations

import builtins
import dis
from collections.abc import Callable
from types import CodeType
from typing import Any

_NAME = "state"


def uses_free_state(body: Callable[..., Any], run_type: type) -> bool:
    """Whether a function reads a name `state` that is not its own and does not exist yet, or is
    what an earlier run returned."""
    code: CodeType | None = getattr(body, "__code__", None)
    if code is None:
        return False
    if _NAME in code.co_freevars:
        cell = (body.__closure__ or ())[code.co_freevars.index(_NAME)]
        try:
            return isinstance(cell.cell_contents, run_type)
        except ValueError:  # empty so far
            return True
    if not _reads_global(code):
        return False
    known: dict[str, Any] = {**vars(builtins), **body.__globals__}
    return _NAME not in known or isinstance(known[_NAME], run_type)


def misses_state(error: BaseException) -> bool:
    return isinstance(error, NameError) and error.name == _NAME


def _reads_global(code: CodeType) -> bool:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and instruction.argval == _NAME:
            return True
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return any(_reads_global(each) for each in inner)
