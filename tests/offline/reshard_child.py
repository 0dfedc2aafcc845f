"""An engine under load that moves from one device to two and back; prints, as JSON, what it
answered, how long the moves took and what was left.

A process of its own, because the number of host devices is fixed once jax has started.
"""

import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jaxsgl
from bench.host_step import TINY_MODEL
from jaxsgl.interface import OperationRefused
from jaxsgl.runner.mesh import make_mesh

MOVES = ["tp=2", "tp=1"]
NUM_TOKENS = 200


def prompts() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(1, 4000) for _ in range(length)] for length in range(20, 100, 5)]


def generate(engine: Any) -> list[list[int]]:
    """All prompts at once; half of them wait for the others."""
    params = {"temperature": 0.0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    answers = engine.generate(input_ids=prompts(), sampling_params=params)
    return [answer["output_ids"] for answer in answers]


def under_load(engine: Any) -> dict[str, object]:
    """Answers of a load in the midst of which the model moves."""
    answers: list[list[list[int]]] = []
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            answers.append(generate(engine))

    loading = threading.Thread(target=load)
    loading.start()
    moves: list[list[object]] = []
    for mesh in MOVES:
        while engine.stats().num_running < 8:
            time.sleep(0.01)
        begin_s = time.perf_counter()
        report = engine.reshard(mesh=mesh)
        moves.append([report.mesh, report.paused_s, time.perf_counter() - begin_s])
    over.set()
    loading.join()
    return {"answers": answers, "moves": moves}


def main() -> None:
    make_mesh({"tp": 2})  # before anything else makes jax count its devices
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(TINY_MODEL))
        settings = {"model_path": folder, "load_format": "dummy", "skip_tokenizer_init": True}
        sizes = {"max_num_reqs": 8, "chunked_prefill_size": 64, "max_total_tokens": 4096}
        with jaxsgl.Engine(**settings, **sizes, compilation_cache_dir=folder) as engine:
            result = {"before": generate(engine), **under_load(engine)}
            result["recomputed"] = engine.stats().recomputed_tokens
            try:
                engine.reshard(mesh="tp=64")
            except OperationRefused as error:
                result["refused"] = error.message
            result["after"] = generate(engine)
            stats = engine.stats()
            result["left"] = [stats.num_running, stats.num_waiting, stats.recompiles]
            result["mesh"] = engine.model.mesh
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
