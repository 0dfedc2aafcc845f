"""`python -m jaxsgl.convert IN OUT`: any model that can be served, as a folder of Orbax weights.

The folder has everything that serving needs. Its weights lie there as the model keeps them, so that
a server reads them straight onto its mesh, whatever that is.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import disk_usage, rmtree

import jax
import jax.numpy as jnp
from tqdm import tqdm

from jaxsgl.command_line import OneLineParser
from jaxsgl.config import ConfigError
from jaxsgl.loading.checkpoint import Checkpoint, open_checkpoint
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.loading.locate import locate_model
from jaxsgl.loading.model_tensors import expected_shapes
from jaxsgl.loading.orbax_checkpoint import (
    TOKENIZER_FOLDER,
    WEIGHTS_FOLDER,
    OrbaxCheckpoint,
    write_manifest,
)
from jaxsgl.loading.orbax_tokenizer import write_tokenizer
from jaxsgl.loading.orbax_weights import save_weights
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.registry import model_class

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
NUM_PIECES = 8
"""Most devices that each read a piece of a weight of their own; more share pieces."""
REMOVAL_PERIOD_S = 0.1
MAX_REMOVALS = 200
ENOUGH_TIMES_GONE = 4


def main(argv: list[str] | None = None) -> int:
    """Convert; return the exit code.

    0 when OUT is complete, 2 if the settings or the model cannot be used, 1 if OUT cannot be
    written; after SIGINT the process ends with 130. Unless 0, OUT is as it was before.
    """
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        path = locate_model(arguments.source, arguments.revision)
        checkpoint = open_checkpoint(path, arguments.load_format)
        if isinstance(checkpoint, OrbaxCheckpoint):
            raise ConfigError(f"{path} is an Orbax checkpoint already")
        # Accelerators are left alone, and each piece of a weight is a device's own.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", NUM_PIECES)
        convert(checkpoint, arguments.out, arguments.dtype)
    except (ConfigError, CheckpointError) as error:
        sys.stderr.write(f"jaxsgl: {error}\n")
        return EXIT_USAGE
    except OSError as error:
        sys.stderr.write(f"jaxsgl: cannot write: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        # At once: threads that the interpreter would wait for are still writing, and would bring
        # back what was removed.
        os._exit(EXIT_INTERRUPTED)
    sys.stdout.write(f"{arguments.out}: {checkpoint.config.name} in {arguments.dtype}\n")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m jaxsgl.convert",
        description="Write a model as a folder of Orbax weights, with its tokenizer.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", help="what --model-path of the server takes")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, new or empty")
    parser.add_argument(
        "--load-format",
        default="auto",
        choices=("auto", "gguf", "safetensors", "dummy"),
        help="how the weights of IN are stored (default: auto)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="type of the weights in OUT; float32 loses nothing (default: float32)",
    )
    return parser.parse_args(argv)


def convert(checkpoint: Checkpoint, out: Path, dtype: str) -> None:
    """Write all of `checkpoint` to the folder `out`, which is then complete or as it was before.

    Raises ConfigError if there is something at `out`, CheckpointError if the checkpoint cannot be
    read, and OSError if `out` cannot be written.
    """
    config = checkpoint.config
    with _complete_or_absent(out) as folder:
        _check_space(folder, config, dtype)
        with tqdm(desc="converting weights", unit="B", unit_scale=True, leave=False) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            save_weights(
                folder / WEIGHTS_FOLDER,
                model_class(config.architecture),
                config,
                checkpoint,
                jnp.dtype(dtype),
                show,
            )
        write_tokenizer(checkpoint.tokenizer_source, folder / TOKENIZER_FOLDER)
        write_manifest(folder, config, dtype)


def _check_space(folder: Path, config: ModelConfig, dtype: str) -> None:
    num_values = sum(math.prod(shape) for shape in expected_shapes(config).values())
    needed_bytes, free_bytes = num_values * jnp.dtype(dtype).itemsize, disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise OSError(
            f"the weights need {needed_bytes / 1e9:.2f} GB, {free_bytes / 1e9:.2f} GB are free"
        )


@contextlib.contextmanager
def _complete_or_absent(out: Path) -> Iterator[Path]:
    """A new folder that becomes `out` if the block ends well and vanishes if not.

    Killed, it stays behind as a hidden neighbour of `out`. Raises ConfigError if there is something
    at `out` already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is no empty folder; name a new one")
    partial = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        # Replaces an empty folder, and nothing else.
        partial.rename(out)
    except BaseException:
        _remove(partial)
        raise


def _remove(folder: Path) -> None:
    """Threads that were writing when they were interrupted go on for a moment, and bring back what
    is removed: only a folder that stays away is gone."""
    num_times_gone = 0
    for _ in range(MAX_REMOVALS):
        rmtree(folder, ignore_errors=True)
        num_times_gone = 0 if folder.exists() else num_times_gone + 1
        if num_times_gone == ENOUGH_TIMES_GONE:
            return
        time.sleep(REMOVAL_PERIOD_S)


if __name__ == "__main__":
    sys.exit(main())
