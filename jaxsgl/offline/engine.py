"""`jaxsgl.Engine`. Imports jax, which `jaxsgl` itself does not."""

from __future__ import annotations

import os
from typing import Any

from jaxsgl.engine import Replica
from jaxsgl.loading.model_files import open_model
from jaxsgl.offline.offline_engine import OfflineEngine
from jaxsgl.offline.settings import engine_config


class Engine(OfflineEngine):
    """A model on this machine's devices, in this process.

    with Engine(model_path="…/model.gguf", mesh="tp=1") as engine:
        print(engine.generate("The capital of France is", {"max_new_tokens": 8})["text"])
    """

    def __init__(self, model_path: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        """Returns when the engine is ready. `settings` are the fields of `config.EngineConfig`.

        Raises ConfigError, CheckpointError, TokenizerError or StartError, each one line that says
        what to change.
        """
        config = engine_config({"model_path": model_path, **settings})
        _, tokenizer = open_model(config)
        super().__init__(config, tokenizer, Replica.start)
