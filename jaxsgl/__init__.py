"""jaxsgl: an LLM serving engine on JAX/XLA.

What is named here is loaded when it is first used: `import jaxsgl` alone imports next to nothing.
"""

from importlib import import_module

TYPE_CHECKING = False  # Type checkers take it for true; importing `typing` would cost the most.
if TYPE_CHECKING:
    from jaxsgl.interface import SamplingParams
    from jaxsgl.lang.branching import branch
    from jaxsgl.lang.default_backend import set_default_backend
    from jaxsgl.lang.errors import (
        InvalidAnswer,
        ProgramError,
        RunCancelled,
        RunTimeout,
        UnknownVariable,
    )
    from jaxsgl.lang.http_backend import OpenAI, RuntimeEndpoint
    from jaxsgl.lang.program import Program, function
    from jaxsgl.lang.run import Run
    from jaxsgl.lang.state import ProgramState
    from jaxsgl.lang.words import (
        assistant,
        assistant_begin,
        assistant_end,
        gen,
        gen_int,
        gen_string,
        select,
        system,
        system_begin,
        system_end,
        user,
        user_begin,
        user_end,
    )
    from jaxsgl.offline.engine import Engine

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "InvalidAnswer",
    "OpenAI",
    "Program",
    "ProgramError",
    "ProgramState",
    "Run",
    "RunCancelled",
    "RunTimeout",
    "RuntimeEndpoint",
    "SamplingParams",
    "UnknownVariable",
    "__version__",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "branch",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "select",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "user",
    "user_begin",
    "user_end",
]

_MODULES = {
    "Engine": "jaxsgl.offline.engine",
    "InvalidAnswer": "jaxsgl.lang.errors",
    "OpenAI": "jaxsgl.lang.http_backend",
    "Program": "jaxsgl.lang.program",
    "ProgramError": "jaxsgl.lang.errors",
    "ProgramState": "jaxsgl.lang.state",
    "Run": "jaxsgl.lang.run",
    "RunCancelled": "jaxsgl.lang.errors",
    "RunTimeout": "jaxsgl.lang.errors",
    "RuntimeEndpoint": "jaxsgl.lang.http_backend",
    "SamplingParams": "jaxsgl.interface",
    "UnknownVariable": "jaxsgl.lang.errors",
    "assistant": "jaxsgl.lang.words",
    "assistant_begin": "jaxsgl.lang.words",
    "assistant_end": "jaxsgl.lang.words",
    "branch": "jaxsgl.lang.branching",
    "function": "jaxsgl.lang.program",
    "gen": "jaxsgl.lang.words",
    "gen_int": "jaxsgl.lang.words",
    "gen_string": "jaxsgl.lang.words",
    "select": "jaxsgl.lang.words",
    "set_default_backend": "jaxsgl.lang.default_backend",
    "system": "jaxsgl.lang.words",
    "system_begin": "jaxsgl.lang.words",
    "system_end": "jaxsgl.lang.words",
    "user": "jaxsgl.lang.words",
    "user_begin": "jaxsgl.lang.words",
    "user_end": "jaxsgl.lang.words",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
