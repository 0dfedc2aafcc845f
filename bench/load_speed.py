"""How fast weights come from disk onto devices: `python -m bench.load_speed --model-path FOLDER`.

Takes the engine's flags; loads the weights as a start would, and nothing else. What the system has
cached of the files is dropped before, which takes root. Beside it stands how fast one stream reads
the largest file, and how much of the host's memory was taken meanwhile beyond what lies in files.

`--write OUT` writes a checkpoint of random bfloat16 values first, with the shapes of --model-path,
and loads that.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from bench.results import show, write_result
from jaxsgl.command_line import parse_command_line
from jaxsgl.config import EngineConfig, option
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.model_files import open_model
from jaxsgl.loading.model_tensors import expected_shapes
from jaxsgl.runner.build import Parts
from jaxsgl.runner.mesh import make_mesh, parse_mesh
from jaxsgl.runner.platform import PLATFORMS
from jaxsgl.runner.programs import split_weights

FILE_BYTES = 4e9
READ_BYTES = 16 << 20
MAX_READ_BYTES = 4e9
"""Of the largest file, to see how fast the disk is."""
POLL_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBench:
    """bench"""

    write: str | None = option(None, "folder for a checkpoint of random values, to be loaded then")
    output: str | None = option(None, "file for the result, as JSON")


def write_checkpoint(shapes: Mapping[str, tuple[int, ...]], config: Path, folder: Path) -> None:
    """Random values in files of about FILE_BYTES, as HuggingFace lays them out."""
    folder.mkdir(parents=True)
    shutil.copy(config / "config.json", folder)
    values = (0.02 * np.random.default_rng(0).standard_normal(1 << 24)).astype(ml_dtypes.bfloat16)
    places: dict[str, str] = {}
    names = iter(shapes)
    while part := list(_about(FILE_BYTES, names, shapes)):
        file = f"model-{len(set(places.values())):05}.safetensors"
        save_file({name: np.resize(values, shapes[name]) for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _about(
    num_bytes: float, names: Iterator[str], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    while num_bytes > 0 and (name := next(names, None)) is not None:
        num_bytes -= 2 * np.prod(shapes[name])
        yield name


def measure(config: EngineConfig) -> dict[str, Any]:
    """Load the weights of a checkpoint; GB are 10^9 bytes."""
    assert config.model_path is not None
    path = Path(config.model_path)
    mesh = make_mesh(parse_mesh(config.mesh or "tp=1"))
    checkpoint, _ = open_model(dataclasses.replace(config, skip_tokenizer_init=True))
    parts = Parts(config, checkpoint, PLATFORMS[mesh.local_devices[0].platform])
    layout = parts.layout(mesh, config.sharding_rules)
    parts.abstract(layout)
    jax.block_until_ready(jax.device_put(np.zeros(1), layout.sharding()))  # devices are awake
    is_cold = drop_cached_files()
    disk = _read_speed(max(path.rglob("*"), key=lambda file: file.stat().st_size))
    drop_cached_files()
    with _host_memory() as memory:
        begin_s = time.perf_counter()
        model = parts.form.load(checkpoint, layout, parts.dtype)
        weights = jax.block_until_ready(split_weights(model))
        elapsed_s = time.perf_counter() - begin_s
    num_bytes = sum(array.nbytes for array in weights)
    return {
        "weights_gb": num_bytes / 1e9,
        "load_s": elapsed_s,
        "load_gb_per_s": num_bytes / 1e9 / elapsed_s,
        "one_stream_gb_per_s": disk / 1e9,
        "files_were_cached": not is_cold,
        "largest_weight_gb": max(array.nbytes for array in weights) / 1e9,
        "host_memory_gb": memory["peak"] / 1e9,
    }


def drop_cached_files() -> bool:
    """Have the system forget what it has cached of files; False if it does not let us."""
    os.sync()  # what was just written would stay
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
    except OSError:
        return False
    return True


def _read_speed(file: Path) -> float:
    """Bytes a second of one stream."""
    num_bytes, begin_s = 0, time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        while num_bytes < MAX_READ_BYTES and (data := stream.read(READ_BYTES)):
            num_bytes += len(data)
    return num_bytes / (time.perf_counter() - begin_s)


@contextmanager
def _host_memory() -> Iterator[dict[str, int]]:
    """ "peak": how many bytes more than before this process had at most, files aside."""
    memory = {"peak": 0}
    before, over = _anonymous_bytes(), threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            memory["peak"] = max(memory["peak"], _anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield memory
    finally:
        over.set()
        watcher.join()


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def main(argv: list[str]) -> None:
    config, bench = parse_command_line(
        argv, "python -m bench.load_speed", __doc__ or "", EngineConfig, LoadBench
    )
    if bench.write is not None and config.model_path is not None:
        source = Path(config.model_path)
        shapes = expected_shapes(open_checkpoint(source, "dummy").config)
        write_checkpoint(shapes, source, Path(bench.write))
        config = dataclasses.replace(config, model_path=bench.write)
    summary = measure(config)
    show(summary)
    write_result(bench.output, "load_speed", dataclasses.asdict(bench), summary)


if __name__ == "__main__":
    main(sys.argv[1:])
