"""Every compiled program of a runner, made before the first request."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxsgl.models.attention import AttentionKind, KVPages
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.quantization.matrix import QuantizedMatrix
from jaxsgl.models.sharding import Layout
from jaxsgl.models.weights import Model, device_bytes, placement
from jaxsgl.runner.batch import draw_fields, forward_fields, unpack_forward
from jaxsgl.runner.buckets import Bucket
from jaxsgl.runner.chain import CHAIN_WRITES, Weights, chain_fields, jit_chain
from jaxsgl.runner.kv_cache import kv_allocator
from jaxsgl.runner.packing import PackedInts
from jaxsgl.runner.platform import Platform
from jaxsgl.runner.sampler import DrawKind, Drawn, draw_step, draw_writes
from jaxsgl.runner.slot_state import (
    OPENING_WRITES,
    SlotState,
    open_slot,
    opening_fields,
    split_state,
    state_allocator,
)
from jaxsgl.runner.slot_updates import (
    UPDATE_SIZES,
    UPDATE_WRITES,
    UpdateSize,
    update_fields,
    update_slots,
)
from jaxsgl.runner.token_masks import jit_mask, mask_fields
from jaxsgl.step import StepLimits


class Program(NamedTuple):
    """A function and the layout of the vector that it is told about a step by."""

    fields: PackedInts
    run: Any
    """Jitted, and once compiled the executable: nothing is ever compiled because of a call, which
    fails if it has other arrays than those declared."""


class StateProgram(NamedTuple):
    """A program that writes some arrays of the slots' state: those alone are donated and come back,
    since a host pays for each."""

    fields: PackedInts
    run_parts: Any
    """run_parts(written, rest, *args) -> (result, written), as `split_state` splits the state; as
    `Program.run`."""
    writes: tuple[str, ...]

    def run(self, state: SlotState, *args: Any) -> tuple[Any, SlotState]:
        """What the program returns, and the state after it."""
        written, rest = split_state(state, self.writes)
        result, written = self.run_parts(written, rest, *args)
        return result, rest._replace(**written)


ProgramKind = Literal["forward", "chain", "draw", "mask", "slots"]


class Call(NamedTuple):
    """A program, and what it will be called with."""

    kind: ProgramKind
    key: Any
    """What tells it from the others of its kind: a bucket, a way to draw and a number of logits, a
    number of logits, "open" or an update size."""
    run: Any
    args: tuple[Any, ...]
    """Shapes and places."""


class Programs:
    """All that a runner ever calls, for one model on one mesh."""

    def __init__(
        self,
        model: Model,
        config: ModelConfig,
        layout: Layout,
        limits: StepLimits,
        buckets: Sequence[Bucket],
        kv_dtype: DTypeLike,
        platform: Platform,
        backend: str,
    ) -> None:
        """`model` needs no values, only shapes; `backend` names the kernels to use."""
        self.limits = limits
        self.layout = layout
        self.backend = backend
        self.buckets = tuple(buckets)
        join, self.weights = split_model(model, layout)
        weight_bytes = device_bytes(model, layout)
        self.compiler_options = {
            bucket: platform.compiler_options(bucket, layout.mesh.size, weight_bytes)
            for bucket in buckets
        }
        """What XLA is told about the forward program of each."""
        self._kv = kv_allocator(config, layout, limits.num_pages, limits.page_size, kv_dtype)
        self._state = state_allocator(layout, limits)
        self.allocate_kv: Callable[[], KVPages] = self._kv
        self.allocate_state: Callable[[], SlotState] = self._state
        self.forward = {
            bucket: forward_program(
                join,
                layout,
                bucket,
                limits.page_size,
                AttentionKind(bucket.mode, backend),
                self.compiler_options[bucket],
            )
            for bucket in buckets
            if bucket.mode != "chain"
        }
        self.chain = {
            bucket: StateProgram(
                chain_fields(bucket),
                jit_chain(
                    join,
                    self.weights,
                    layout,
                    bucket,
                    limits.page_size,
                    backend,
                    self.compiler_options[bucket],
                ),
                CHAIN_WRITES,
            )
            for bucket in buckets
            if bucket.mode == "chain"
        }
        num_logits = sorted({bucket.num_logits for bucket in self.forward})
        self.draw_kinds = platform.draw_kinds
        self.draw = {
            (kind, n): draw_program(layout, n, kind, backend)
            for kind in platform.draw_kinds
            for n in num_logits
        }
        self.mask = {n: mask_program(layout, n, limits, backend) for n in num_logits}
        self.open = opening_program(layout, limits.vocab_size)
        self.update = {size: update_program(layout, size) for size in UPDATE_SIZES}

    def compile(
        self, progress: Callable[[int, int], None], may_begin: Future[None] | None = None
    ) -> int:
        """Compile every program; bytes per device that the largest step needs for itself.

        `progress` is called with programs compiled and programs in all. Choosing among algorithms
        takes device memory, and nothing else may keep the devices busy meanwhile: KV pages are
        allocated afterwards, and until `may_begin` has a result programs are only traced. Raises
        CancelledError if that is cancelled.
        """
        calls = self.calls()
        by_kind: dict[ProgramKind, int] = {}
        compiled = compile_all(calls, progress, may_begin or _done())
        for call, executable in zip(calls, compiled, strict=True):
            self._keep(call, executable)
            by_kind[call.kind] = max(by_kind.get(call.kind, 0), own_bytes(executable))
        apart = by_kind["forward"] + by_kind["mask"] + by_kind["draw"]
        return max(apart, by_kind.get("chain", 0))

    def _keep(self, call: Call, executable: jax.stages.Compiled) -> None:
        match call.kind:
            case "forward":
                self.forward[call.key] = self.forward[call.key]._replace(run=executable)
            case "chain":
                self.chain[call.key] = self.chain[call.key]._replace(run_parts=executable)
            case "draw":
                self.draw[call.key] = self.draw[call.key]._replace(run_parts=executable)
            case "mask":
                self.mask[call.key] = self.mask[call.key]._replace(run=executable)
            case "slots" if call.key == "open":
                self.open = self.open._replace(run_parts=executable)
            case "slots":
                self.update[call.key] = self.update[call.key]._replace(run_parts=executable)

    def calls(self) -> list[Call]:
        """Every program with arguments of the shapes it will be called with."""
        replicated = self.layout.sharding()

        def vector(fields: PackedInts) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((fields.size,), np.int32)  # comes from the host

        kv_place = self.layout.sharding(None, None, "kv_heads", None)
        kv = _placed(jax.eval_shape(self._kv), kv_place)
        state = _placed(jax.eval_shape(self._state), replicated)
        calls: list[Call] = []
        # The largest first: they take longest.
        for bucket, program in reversed(self.forward.items()):
            args = (self.weights, kv, state, vector(program.fields))
            calls.append(Call("forward", bucket, program.run, args))
        for bucket, program in reversed(self.chain.items()):
            parts = split_state(state, program.writes)
            args = (*parts, self.weights, kv, vector(program.fields))
            calls.append(Call("chain", bucket, program.run_parts, args))

        def logits(num_logits: int) -> jax.ShapeDtypeStruct:
            shape = (num_logits, self.limits.vocab_size)
            return jax.ShapeDtypeStruct(shape, np.float32, sharding=replicated)

        def state_call(kind: ProgramKind, key: Any, program: StateProgram, *args: Any) -> Call:
            parts = split_state(state, program.writes)
            return Call(kind, key, program.run_parts, (*parts, *args, vector(program.fields)))

        for key, program in self.draw.items():
            calls.append(state_call("draw", key, program, logits(key[1])))
        for num_logits, program in self.mask.items():
            args = (logits(num_logits), vector(program.fields))
            calls.append(Call("mask", num_logits, program.run, args))
        for key, program in (("open", self.open), *self.update.items()):
            calls.append(state_call("slots", key, program))
        return calls


def split_weights(model: Model) -> Weights:
    """The weights of a loaded model as one flat tuple, as the forward programs take them.

    A flat tuple passes into a compiled program several times faster than a module does.
    """
    return tuple(jax.tree.leaves(nnx.state(model)))


def split_model(
    model: Model, layout: Layout
) -> tuple[Callable[[Weights], Model], tuple[jax.ShapeDtypeStruct, ...]]:
    """The function that makes a model of its weights, and the weights' shapes and places."""
    graph, state = nnx.split(model)
    structure = jax.tree.structure(state)
    params = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, nnx.Variable))

    def join(weights: Weights) -> Model:
        return nnx.merge(graph, jax.tree.unflatten(structure, weights))

    return join, tuple(declared for param in params for declared in _declared(param, layout))


def _declared(param: nnx.Param, layout: Layout) -> Iterator[jax.ShapeDtypeStruct]:
    """Shapes and places of the arrays that a weight consists of."""
    value = param.get_value()
    if isinstance(value, QuantizedMatrix):
        parts = zip(jax.tree.leaves(value), jax.tree.leaves(value.shardings()), strict=True)
    else:
        parts = [(param, placement(param, layout))]
    for part, place in parts:
        yield jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=place)


def _placed(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    def place(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(place, tree)


def forward_program(
    join: Callable[[Weights], Model],
    layout: Layout,
    bucket: Bucket,
    page_size: int,
    kind: AttentionKind,
    compiler_options: dict[str, Any],
) -> Program:
    """run(weights, kv, state, vector) -> (logits float32 [logits, vocab], hidden, kv); kv is
    donated.

    `hidden` [logits, embed] is what the logits are made of, in "mixed"; elsewhere it is None.
    """
    fields = forward_fields(bucket)

    def forward(
        weights: Weights, kv: KVPages, state: SlotState, vector: jax.Array
    ) -> tuple[jax.Array, jax.Array | None, KVPages]:
        batch = unpack_forward(bucket, vector, state, page_size)
        model = join(weights)
        hidden, kv = model.hidden(batch, kv, kind)
        return model.logits(hidden), hidden if bucket.mode == "mixed" else None, kv

    forward.__name__ = f"forward_{bucket.name}"
    kv_sharding = layout.sharding(None, None, "kv_heads", None)
    return Program(
        fields,
        jax.jit(
            forward,
            donate_argnames="kv",
            out_shardings=(layout.sharding(), layout.sharding(), kv_sharding),
            compiler_options=compiler_options,
        ),
    )


def draw_program(layout: Layout, num_logits: int, kind: DrawKind, backend: str) -> StateProgram:
    """run(state, logits, vector) -> (Drawn, state), see `sampler.draw_step`."""
    fields = draw_fields(num_logits)

    def draw(state: SlotState, logits: jax.Array, vector: jax.Array) -> tuple[Drawn, SlotState]:
        return draw_step(logits, state, fields.unpack(vector), kind, backend)

    draw.__name__ = f"draw_{kind}_{num_logits}"
    return _state_program(layout, fields, draw, draw_writes(kind))


def mask_program(layout: Layout, num_logits: int, limits: StepLimits, backend: str) -> Program:
    """run(logits, vector) -> logits, of which no token remains that its mask forbids."""
    fields = mask_fields(num_logits, limits)
    return Program(fields, jit_mask(layout, fields, num_logits, backend))


def opening_program(layout: Layout, vocab_size: int) -> StateProgram:
    """run(state, vector) -> (None, state with one slot set), see `slot_state.open_slot`."""
    fields = opening_fields(vocab_size)

    def open_one(state: SlotState, vector: jax.Array) -> tuple[None, SlotState]:
        return None, open_slot(state, fields.unpack(vector))

    return _state_program(layout, fields, open_one, OPENING_WRITES)


def update_program(layout: Layout, size: UpdateSize) -> StateProgram:
    """run(state, vector) -> (None, state with a plan's changes), see `slot_updates`."""
    fields = update_fields(size)

    def update(state: SlotState, vector: jax.Array) -> tuple[None, SlotState]:
        return None, update_slots(state, fields.unpack(vector))

    update.__name__ = f"update_{size.num_edits}"
    return _state_program(layout, fields, update, UPDATE_WRITES)


def _state_program(
    layout: Layout, fields: PackedInts, change: Callable[..., Any], writes: tuple[str, ...]
) -> StateProgram:
    def run(written: dict[str, jax.Array], rest: SlotState, *args: jax.Array) -> Any:
        result, state = change(rest._replace(**written), *args)
        return result, split_state(state, writes)[0]

    run.__name__ = change.__name__
    jitted = jax.jit(run, donate_argnames="written", out_shardings=layout.sharding())
    return StateProgram(fields, jitted, writes)


def compile_all(
    calls: Sequence[Call], progress: Callable[[int, int], None], may_begin: Future[None]
) -> list[jax.stages.Compiled]:
    """Compile each program for its arguments, several at a time.

    XLA compiles without holding the interpreter's lock, tracing holds it: so this thread traces and
    the others compile.
    """

    def compile_one(lowered: Any) -> Any:
        may_begin.result()
        return lowered.compile()

    num_threads = max(2, (os.cpu_count() or 2) // 2)
    with ThreadPoolExecutor(num_threads, "compile") as threads:
        compiling: list[Future[Any]] = []
        for call in calls:
            if may_begin.cancelled():
                break
            compiling.append(threads.submit(compile_one, call.run.lower(*call.args)))
        for done, future in enumerate(as_completed(compiling), start=1):
            future.result()
            progress(done, len(calls))
        return [future.result() for future in compiling]


def _done() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done


def own_bytes(compiled: jax.stages.Compiled) -> int:
    """Temporaries and results of a program, less what it returns in the place of an argument."""
    memory: Any = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + max(0, results)
