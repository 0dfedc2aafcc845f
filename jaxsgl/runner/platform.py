"""What differs between kinds of devices, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.models.sharding import MatrixOrder
from jaxsgl.runner.buckets import Bucket, Sizes
from jaxsgl.runner.sampler import DRAW_KINDS, DrawKind

CUBLAS_MIN_TOKENS = 32
"""From so many rows on cuBLASLt's products are faster than those that XLA makes itself: by 8 % at
64 to 128 rows, by nothing at 32."""
CAPTURED = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,DYNAMIC_SLICE_FUSION,COLLECTIVES"
"""What becomes a part of the one graph that a step on several GPUs is: XLA's own choice, and
collectives, which would cut it in pieces."""
NO_KINDS = ""
"""An empty list of kinds, as XLA reads one."""
LAUNCHED_MIN_WORK = 4e12
"""Tokens of a step times bytes of weights: 512 tokens and 8 GB. From there on each kernel takes
longer than its launch, so that a graph saves nothing, and on one device kernels are launched one by
one: the first begins at once, not after the milliseconds that a host needs to bring a graph of 500
up to date. In a smaller step the device would wait between kernels."""
CHAIN_LEN = 6
"""Decode steps on end, where a GPU would wait for the host. At one row six on end took two H200
3.60 ms each, single ones 4.17."""
HOST_BOUND_BYTES = 12e9
"""Of weights: as much as an H100 reads in the 3 to 4 ms that the host needs for a step. On several
GPUs it needs 4 to 6, as XLA records a graph that holds collectives anew in each run."""
UNWANTED_PASSES = "rematerialization,dot-strength-reduction"
"""The first computes things twice to save memory where arguments alone take most of the device's,
as pages do; what steps need besides is little, and planned for. The second makes the product of one
token with a matrix of under ten million entries a sum over its rows: by a few blocks of threads, or
with all the terms written to memory before."""
TPU_LANES = 128
TPU_TILE_ROWS = 16
"""Of a tile of bfloat16, in which TPUs copy memory."""


@dataclass(frozen=True, slots=True)
class Platform:
    """Defaults and choices for one kind of device."""

    name: str
    """As jax calls it."""
    dtype: str
    max_rows: int
    max_tokens: int
    sizes: Sizes
    draw_kinds: tuple[DrawKind, ...]
    """Ways to draw that are compiled, "full" among them: it can stand in for the others."""
    backends: tuple[str, ...]
    """Kernels that run here, the best first."""
    matrix_order: MatrixOrder

    def backend(self, config: EngineConfig, head_dim: int) -> str:
        """The kernels to use for heads of that size. Raises ConfigError for such as do not run
        here, or not with these heads or pages."""
        asked = config.attention_backend
        if config.disable_flashinfer:
            if asked not in ("auto", "xla"):
                raise ConfigError(f"--disable-flashinfer contradicts --attention-backend {asked}")
            asked = "xla"
        fits_tpu = head_dim % TPU_LANES == 0 and config.page_size % TPU_TILE_ROWS == 0
        if asked == "tpu" and asked in self.backends and not fits_tpu:
            raise ConfigError(
                f"--attention-backend tpu needs heads of a multiple of {TPU_LANES} and pages of a "
                f"multiple of {TPU_TILE_ROWS}; here are {head_dim} and {config.page_size}"
            )
        if asked == "auto":
            return next(name for name in self.backends if name != "tpu" or fits_tpu)
        if asked not in self.backends:
            here = ", ".join(self.backends)
            raise ConfigError(f"--attention-backend {asked} does not run on {self.name}; {here} do")
        return asked

    def chain_len(self, config: EngineConfig, num_devices: int, weight_bytes: int) -> int:
        """Most decode steps on end, see `StepLimits.chain_len`, with so many bytes of weights on
        each device."""
        may_wait = self.name == "gpu" and (num_devices > 1 or weight_bytes < HOST_BOUND_BYTES)
        return config.num_continuous_decode_steps or (CHAIN_LEN if may_wait else 1)

    def compiler_options(
        self, bucket: Bucket, num_devices: int, weight_bytes: int
    ) -> dict[str, Any]:
        """What XLA is told about a forward program, with so many bytes of weights on each
        device."""
        if self.name != "gpu":
            return {}
        options: dict[str, Any] = {"xla_disable_hlo_passes": UNWANTED_PASSES}
        if bucket.tokens_at_once >= CUBLAS_MIN_TOKENS:
            options["xla_gpu_enable_triton_gemm"] = False
        if num_devices == 1 and bucket.tokens_at_once * weight_bytes >= LAUNCHED_MIN_WORK:
            options["xla_gpu_enable_command_buffer"] = NO_KINDS
        if num_devices > 1:
            options["xla_gpu_enable_command_buffer"] = CAPTURED
            # XLA's own kernels for collectives cannot become a part of the graph, NCCL's can.
            options["xla_gpu_experimental_use_collective_kernels"] = NO_KINDS
        return options


_CPU_SIZES = Sizes(
    decode_rows=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    shared_rows=(),
    mixed_tokens=(16, 64, 256, 1024, 4096),
    logits=(1, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
# Up to some tens of rows a step takes as long as reading the weights does.
_GPU_SIZES = Sizes(
    decode_rows=(1, 4, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024),
    shared_rows=(64, 128, 256, 512, 1024),
    mixed_tokens=(32, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768),
    logits=(1, 16, 32, 64, 128, 256, 512, 1024),
)
_CPU = Platform(
    name="cpu",
    # XLA's products of a few bfloat16 rows are twenty times slower than float32 on a CPU.
    dtype="float32",
    max_rows=16,
    max_tokens=256,
    sizes=_CPU_SIZES,
    draw_kinds=("full",),
    backends=("xla",),
    matrix_order="as shaped",
)
_GPU = Platform(
    name="gpu",
    dtype="bfloat16",
    max_rows=256,
    max_tokens=8192,
    sizes=_GPU_SIZES,
    draw_kinds=DRAW_KINDS,
    backends=("triton", "xla"),
    matrix_order="inputs first",
)
_TPU = Platform(
    name="tpu",
    dtype="bfloat16",
    max_rows=256,
    max_tokens=8192,
    sizes=_GPU_SIZES,
    draw_kinds=DRAW_KINDS,
    backends=("tpu", "xla"),
    matrix_order="in tiles",
)
PLATFORMS = {platform.name: platform for platform in (_CPU, _GPU, _TPU)}
