"""From a configuration and a checkpoint to a runner that is ready."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.interface import OperationRefused, Reshard
from jaxsgl.loading.orbax_checkpoint import OrbaxCheckpoint
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.models.quantization.matrix import QuantizationError
from jaxsgl.models.sharding import Layout, resolve_layout
from jaxsgl.models.sharding_rules import RulesError, read_rules, rules_of
from jaxsgl.models.weights import Model, device_bytes, loading_bytes
from jaxsgl.runner.buckets import finer, make_buckets, up_to
from jaxsgl.runner.kv_cache import page_bytes
from jaxsgl.runner.memory import GIB, MemoryPlan, step_bytes
from jaxsgl.runner.mesh import make_mesh, parse_mesh
from jaxsgl.runner.operations import Spread
from jaxsgl.runner.platform import PLATFORMS, Platform
from jaxsgl.runner.processes import agreed_pages
from jaxsgl.runner.programs import Programs
from jaxsgl.runner.runner import ModelRunner
from jaxsgl.runner.slot_state import state_allocator
from jaxsgl.runner.weight_source import ModelSource, OtherWeights, choose_form
from jaxsgl.step import StepLimits
from pallas_kernels.paged_decode.api import SHARING
from pallas_kernels.paged_decode.shared_prefixes import PACK_ROWS
from pallas_kernels.paged_triton import MAX_HEAD_DIM, MIN_HEAD_DIM, is_supported

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a stage, and how much of it is done out of how much."""

CPU_TOTAL_TOKENS = 32768
MAX_TOKENS = 2**31 - 1
"""In the page pool: kernels count tokens in 32 bits."""
MAX_8_BIT_BYTES = 2**31 - 1
"""Per layer, keys or values: kernels cannot address larger arrays of bytes."""
MAX_SCORED_LOGITS = 256
"""Logits per step where prompt tokens are scored; a step keeps all of them in memory."""


def build_runner(
    config: EngineConfig, checkpoint: ModelSource | OrbaxCheckpoint, progress: Progress
) -> ModelRunner:
    """Load the weights, compile every program and allocate the pages.

    Raises ConfigError for a setting that the model or this machine cannot meet, and what the
    checkpoint raises when it cannot be read.
    """
    _configure_memory(config)
    mesh = make_mesh(parse_mesh(config.mesh or "tp=1"), config.nnodes)
    device = mesh.local_devices[0]
    parts = Parts(config, checkpoint, PLATFORMS[device.platform])
    _configure_compiler(config, parts.dtype)
    layout = parts.layout(mesh, config.sharding_rules)
    sizes = step_sizes(config, parts.model, parts.platform, parts.backend)
    abstract = parts.abstract(layout)
    memory, num_pages = None, _given_pages(config, device.platform)
    if num_pages is None:
        stats = device.memory_stats()
        memory = plan_memory(config, parts.model, layout, sizes, abstract, parts.dtype, stats)
        memory.require_room()
        num_pages = memory.num_pages
    if config.nnodes > 1:
        same = dataclasses.replace(parts.model, name="")
        num_pages = agreed_pages(num_pages, f"{same} {parts.form} {parts.dtype}")
    chain_len = parts.platform.chain_len(config, mesh.size, device_bytes(abstract, layout))
    limits = dataclasses.replace(sizes, num_pages=num_pages, chain_len=chain_len)

    programs = parts.programs(abstract, layout, limits)
    with contextlib.ExitStack() as held:
        pages = held.enter_context(contextlib.ExitStack())
        if memory is not None:
            # Held while everything else finds its place: what is left over must lie in one piece.
            held.callback(_take_room(mesh, memory.steps).delete)
            # The arrays that pages will be, where they will be: weights would leave no such piece.
            for array in programs.allocate_kv():
                pages.callback(array.delete)
        with _compiling(programs, progress) as compiling:
            model = parts.form.load(
                checkpoint,
                layout,
                parts.dtype,
                lambda done, total: progress("loading weights", done, total),
            )
            # Choosing algorithms takes memory, and gives it all back.
            pages.close()
        bytes_per_step = compiling.result()
        if memory is not None:
            memory = dataclasses.replace(memory, num_pages=num_pages, steps=bytes_per_step)
            log.info("memory of each device:\n%s", memory.table())
            memory.require_room(from_margin=memory.allowance)
        runner = ModelRunner(
            model,
            programs,
            parts.source(layout),
            _Respread(parts, limits, config),
            forbid_recompiles=config.forbid_recompiles,
        )
    runner.warm_up()
    return runner


def _given_pages(config: EngineConfig, platform: str) -> int | None:
    """How many there will be whatever memory a device has; None if that decides. `platform` is as
    jax calls it."""
    if config.max_total_tokens is not None:
        return config.max_total_tokens // config.page_size + 1
    if platform == "cpu":
        return CPU_TOTAL_TOKENS // config.page_size + 1
    return None


@contextlib.contextmanager
def _compiling(programs: Programs, progress: Progress) -> Iterator[Future[int]]:
    """Programs are traced while the body runs, and compiled once it has ended; the result is that
    of `Programs.compile`."""
    loaded: Future[None] = Future()
    with ThreadPoolExecutor(1, "trace") as thread:
        compiling = thread.submit(
            programs.compile,
            lambda done, total: progress("compiling programs", done, total),
            loaded,
        )
        try:
            yield compiling
        except BaseException:
            loaded.cancel()
            raise
        loaded.set_result(None)


def _take_room(mesh: Mesh, num_bytes: int) -> jax.Array:
    """So many bytes of each device of a mesh."""
    place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    allocate = functools.partial(jnp.zeros, (mesh.size, num_bytes), jnp.uint8)
    return jax.jit(allocate, out_shardings=place)()


def choose_backend(config: EngineConfig, platform: Platform, model: ModelConfig) -> str:
    """The kernels to use for a model. Raises ConfigError for such as cannot be."""
    backend, head_dim = platform.backend(config, model.head_dim), model.head_dim
    if backend != "triton" or is_supported(head_dim):
        return backend
    if config.attention_backend == "auto":
        log.warning("heads of %d dimensions: attention by XLA, slower than by Triton", head_dim)
        return "xla"
    raise ConfigError(
        f"--attention-backend triton needs heads of {MIN_HEAD_DIM} to {MAX_HEAD_DIM} dimensions, "
        f"not {head_dim}"
    )


def _unwatched(done: int, total: int) -> None:
    """Nobody looks at the progress of this."""


class Parts:
    """What a runner of one model is built of, on whatever mesh."""

    def __init__(
        self, config: EngineConfig, checkpoint: ModelSource | OrbaxCheckpoint, platform: Platform
    ) -> None:
        self.model = checkpoint.config
        # Some ways to rotate depend on how long contexts get here.
        served_len = config.context_length or self.model.context_len
        self._served = dataclasses.replace(self.model, context_len=served_len)
        self.platform = platform
        self.form = choose_form(config.quantization, checkpoint)
        self.dtype = jnp.dtype(platform.dtype if config.dtype == "auto" else config.dtype)
        self.kv_dtype = kv_dtype(config, self.dtype)
        self.backend = choose_backend(config, platform, self.model)
        self._seed = config.random_seed

    def layout(self, mesh: Mesh, rules: str | Mapping[str, Any]) -> Layout:
        """Raises ConfigError."""
        try:
            read = read_rules(rules) if isinstance(rules, str) else rules_of(rules, "given")
            matrix_order = self.platform.matrix_order
            return resolve_layout(self.model, mesh, read, matrix_order=matrix_order)
        except RulesError as error:
            raise ConfigError(str(error)) from None

    def abstract(self, layout: Layout) -> Model:
        """Raises ConfigError."""
        try:
            return self.form.family(self._served, layout, self.dtype)
        except QuantizationError as error:
            raise ConfigError(str(error)) from None

    def programs(self, abstract: Model, layout: Layout, limits: StepLimits) -> Programs:
        return Programs(
            abstract,
            self.model,
            layout,
            limits,
            make_buckets(limits, self.platform.sizes),
            self.kv_dtype,
            self.platform,
            self.backend,
        )

    def source(self, layout: Layout) -> OtherWeights:
        return OtherWeights(self.model, self.form, layout, self.dtype, self._seed)


class _Respread:
    """An `operations.Respread`: programs for the same limits on another mesh or by other rules;
    what is not wanted otherwise is as configured."""

    def __init__(self, parts: Parts, limits: StepLimits, config: EngineConfig) -> None:
        self._parts = parts
        self._limits = limits
        self._config = config

    def __call__(self, wanted: Reshard) -> Spread:
        mesh_text = wanted.mesh or self._config.mesh or "tp=1"
        rules = wanted.sharding_rules
        rules = self._config.sharding_rules if rules is None else rules
        try:
            mesh = make_mesh(parse_mesh(mesh_text), self._config.nnodes)
            layout = self._parts.layout(mesh, rules)
            abstract = self._parts.abstract(layout)
        except ConfigError as error:
            raise OperationRefused(str(error)) from None
        programs = self._parts.programs(abstract, layout, self._limits)
        is_compiled = True
        try:
            bytes_per_step = programs.compile(_unwatched)
        except jax.errors.JaxRuntimeError:
            # Perhaps for want of memory to try kernels out in: pages have all of it.
            is_compiled = False
            itemsize = self._parts.dtype.itemsize
            bytes_per_step = step_bytes(self._parts.model, self._limits, itemsize)
        self._check_room(abstract, layout, bytes_per_step)
        return Spread(programs, self._parts.source(layout), is_compiled)

    def _check_room(self, abstract: Model, layout: Layout, bytes_per_step: int) -> None:
        device = layout.mesh.local_devices[0]
        stats = None if device.platform == "cpu" else device.memory_stats()
        if stats is None:
            return
        parts, limits = self._parts, self._limits
        plan = MemoryPlan(
            limit=stats["bytes_limit"],
            in_use=0,
            weights=device_bytes(abstract, layout),
            slots=slot_bytes(layout, limits),
            loading=0,
            steps=bytes_per_step,
            page=page_bytes(parts.model, layout, self._config.page_size, parts.kv_dtype),
            num_pages=limits.num_pages,
        )
        if plan.free < -plan.allowance:
            raise OperationRefused(
                f"the model and its {limits.num_pages} pages take {-plan.free / GIB:.2f} GiB more "
                f"than each device has; start with a lower --max-total-tokens to spread it so"
            )


def step_sizes(
    config: EngineConfig, model: ModelConfig, platform: Platform, backend: str
) -> StepLimits:
    """The limits that memory has no say in; `num_pages` is 0."""
    context_len = config.context_length or model.context_len
    if context_len > model.context_len:
        raise ConfigError(
            f"--context-length {context_len} is beyond the model's own {model.context_len}"
        )
    max_rows = config.max_num_reqs or platform.max_rows
    max_tokens = config.chunked_prefill_size or platform.max_tokens
    if not config.chunked_prefill:
        max_tokens = context_len
    max_tokens = max(max_tokens, max_rows)
    mixed_sizes = up_to(max_tokens, platform.sizes.mixed_tokens)
    if config.max_itl_ms is not None:
        mixed_sizes = finer(mixed_sizes)
    return StepLimits(
        num_pages=0,
        page_size=config.page_size,
        num_slots=max_rows,
        max_rows=max_rows,
        max_tokens=max_tokens,
        max_logits=max(max_rows, min(max_tokens, MAX_SCORED_LOGITS)),
        max_pages_per_row=-(-context_len // config.page_size),
        vocab_size=model.vocab_size,
        pack_rows=PACK_ROWS if backend in SHARING else 0,
        mixed_sizes=mixed_sizes,
    )


def plan_memory(
    config: EngineConfig,
    model: ModelConfig,
    layout: Layout,
    sizes: StepLimits,
    abstract: Model,
    dtype: DTypeLike,
    stats: Mapping[str, int],
) -> MemoryPlan:
    """As many pages as each device has room for; `abstract` has no values yet, `stats` are jax's
    of a device that nothing was loaded onto."""
    plan = MemoryPlan(
        limit=stats["bytes_limit"],
        in_use=stats["bytes_in_use"],
        weights=device_bytes(abstract, layout),
        slots=slot_bytes(layout, sizes),
        loading=loading_bytes(abstract, layout),
        steps=step_bytes(model, sizes, jnp.dtype(dtype).itemsize),
        page=page_bytes(model, layout, config.page_size, kv_dtype(config, dtype)),
        num_pages=0,
    )
    room = plan.free
    if config.mem_fraction_static is not None:
        room = int(plan.limit * config.mem_fraction_static) - plan.weights - plan.slots
    max_pages = MAX_TOKENS // config.page_size
    if kv_dtype(config, dtype).itemsize == 1:
        max_pages = min(max_pages, 2 * model.num_layers * MAX_8_BIT_BYTES // plan.page)
    return dataclasses.replace(plan, num_pages=min(room // plan.page, max_pages))


def kv_dtype(config: EngineConfig, dtype: DTypeLike) -> np.dtype[Any]:
    """Of the pages of a model of `dtype`."""
    return jnp.dtype(dtype if config.kv_cache_dtype == "auto" else jnp.float8_e4m3fn)


def slot_bytes(layout: Layout, limits: StepLimits) -> int:
    """What slot state takes on each device."""
    state = jax.eval_shape(state_allocator(layout, limits))
    return sum(array.size * array.dtype.itemsize for array in state)


def _configure_memory(config: EngineConfig) -> None:
    """Tell jax how much of a GPU it may take. Of no effect once jax has devices."""
    for name in ("gpu_memory_utilization_limit", "mem_fraction_static"):
        value = getattr(config, name)
        if value is not None and not 0 < value <= 1:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {value:g} is not a share between 0 and 1")
    options = {"memory_fraction": config.gpu_memory_utilization_limit}
    jax.config.update("jax_pjrt_client_create_options", options)


def _configure_compiler(config: EngineConfig, dtype: np.dtype[Any]) -> None:
    folder = config.compilation_cache_dir or Path.home() / ".cache" / "jaxsgl" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    reset_cache()  # or a folder that an earlier runner of this process used stays in use
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Float32 products in float32, also where the hardware has a faster, coarser kind.
    exact = dtype == np.float32
    jax.config.update("jax_default_matmul_precision", "highest" if exact else None)
