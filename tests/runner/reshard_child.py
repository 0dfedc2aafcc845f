"""Moves a small model between meshes while requests are half answered, and prints what they were
answered and what was left of memory, as JSON.

A process of its own, because the number of host devices is fixed once jax has started.
"""

import gc
import json
import logging
import sys
import tempfile

import jax

from jaxsgl.config import EngineConfig
from jaxsgl.interface import OperationFailed, OperationRefused, Reshard
from jaxsgl.runner.build import build_runner
from jaxsgl.runner.mesh import make_mesh
from jaxsgl.runner.programs import Programs
from jaxsgl.runner.runner import ModelRunner
from tests.models.tiny import RandomModel, tiny_config
from tests.runner.driver import Driver

# Two kv heads: repeated on four devices.
MODEL = RandomModel(tiny_config(num_q_heads=8, mlp_size=128, attention_bias=True))
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
SPECS = [
    Reshard(mesh="tp=4"),
    Reshard(mesh="fsdp=2,tp=2", sharding_rules={"mlp": ["fsdp", "tp"], "vocab": "tp"}),
    Reshard(mesh="tp=1", sharding_rules="megatron"),
]
WRONG = [
    Reshard(mesh="tp=3,tp=2"),
    Reshard(mesh="tp=64"),
    Reshard(sharding_rules="zero"),
    Reshard(sharding_rules={"mlp": "fsdp"}),
    Reshard(mesh="tp=3", sharding_rules={"mlp": "tp"}),
]


def answer(runner: ModelRunner) -> list[int]:
    return Driver(runner).generate([PROMPT], 8)[0]


def live_bytes() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays() if not array.is_deleted())


def refusals(runner: ModelRunner) -> list[str]:
    told: list[str] = []
    for wrong in WRONG:
        try:
            runner.prepare(wrong)
        except OperationRefused as error:
            told.append(error.message)
    return told


def failed_move(runner: ModelRunner) -> str:
    """What is told of a move in the midst of which the devices run out of memory."""
    change = runner.prepare(Reshard(mesh="tp=2"))
    put, moves = jax.device_put, iter(range(100))

    def full(*args, **kwargs):
        if next(moves) == 3:
            raise MemoryError("no room")
        return put(*args, **kwargs)

    jax.device_put = full
    try:
        change()
    except OperationFailed as error:
        return error.message
    finally:
        jax.device_put = put
    return ""


def compiled_late(runner: ModelRunner) -> list[object]:
    """How long compiling took in a move whose programs could not be compiled before it; None for
    one of which they could; and what was logged of the two."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("jaxsgl.runner.operations")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    compile_all = Programs.compile

    def full(*args):
        Programs.compile = compile_all
        raise jax.errors.JaxRuntimeError("no room")

    Programs.compile = full
    late, early = (runner.prepare(Reshard(mesh=mesh))() for mesh in ("tp=2", "tp=1"))
    log.removeHandler(handler)
    return [late.compiled_s, early.compiled_s, lines]


def main() -> None:
    make_mesh({"tp": 4})  # before anything else makes jax count its devices
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"max_num_reqs": 1, "chunked_prefill_size": 16, "max_total_tokens": 256}
        config = EngineConfig(compilation_cache_dir=folder, **sizes)
        runner = build_runner(config, MODEL, lambda stage, done, total: None)
        result: dict[str, object] = {"before": answer(runner), "bytes": live_bytes()}
        moved = []
        for spec in SPECS:
            report = runner.prepare(spec)()
            moved.append([report.mesh, list(report.notes), answer(runner)])
        result |= {"moved": moved, "bytes_after": live_bytes(), "refused": refusals(runner)}
        result |= {"failed": failed_move(runner), "late": compiled_late(runner)}
        result |= {"after": answer(runner)}
        result |= {"bytes_at_last": live_bytes(), "recompiles": runner.recompiles}
        runner.close()
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
