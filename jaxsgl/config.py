"""Every setting of a server, as frozen dataclasses; the command line is generated from their
fields by `command_line`.

A config says what a person asked for. `None` means "decide when model and devices are known": the
code that knows them computes a value of its own and never changes the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

QUANTIZATIONS = ("none", "int8", "fp8", "int4", "awq", "gptq")


class ConfigError(Exception):
    """One line that tells a person what to change."""


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | tuple[int, ...] | None = None,
    aliases: tuple[str, ...] = (),
    low: float | None = None,
    group: str | None = None,
    axes: Mapping[str, tuple[str, ...]] | None = None,
) -> Any:
    """A dataclass field that is also a command-line flag.

    A tuple is a flag that may be given several times. A number below `low` is refused. `group`
    begins a new heading of `--help`, under which the following fields are listed too. `axes` are
    flags, by axis, that each write one axis of a mesh.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "aliases": aliases,
        "low": low,
        "group": group,
        "axes": axes or {},
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """model"""

    model_path: str | None = option(
        None,
        "a .gguf file, a HuggingFace folder, a folder that jaxsgl.convert wrote, or a hub id in "
        "the local cache; "
        "default: SmolLM2-135M-Instruct",
        aliases=("model",),
    )
    served_model_name: str | None = option(
        None, "name that clients use; default: the checkpoint's own"
    )
    load_format: str = option(
        "auto",
        "how the weights are stored; dummy draws them at random from a config.json alone",
        choices=("auto", "gguf", "safetensors", "orbax", "dummy"),
    )
    revision: str | None = option(None, "branch, tag or commit of a hub id")
    tokenizer_path: str | None = option(
        None, "folder or .gguf file with the tokenizer; default: the model's own"
    )
    skip_tokenizer_init: bool = option(
        False, "load no tokenizer: prompts are token ids, answers have no text"
    )
    chat_template: str | None = option(
        None, "file with a Jinja template to use instead of the model's own"
    )
    dtype: str = option(
        "auto",
        "type of weights and KV; auto: float32 on CPU, bfloat16 elsewhere",
        choices=("auto", "float32", "bfloat16"),
    )
    quantization: str | None = option(
        None,
        "how matrices are kept: rounded to 8 or 4 bits while they are loaded, awq and gptq as the "
        "file has them, none in --dtype; default: as the file has them",
        choices=QUANTIZATIONS,
    )
    kv_cache_dtype: str = option(
        "auto",
        "type of keys and values in pages; auto: that of the weights. fp8_e4m3 takes a byte each, "
        "unscaled: beyond 448 they are cut off",
        choices=("auto", "fp8_e4m3"),
    )
    context_length: int | None = option(
        None, "longest sequence in tokens; default: the model's own"
    )
    random_seed: int = option(0, "seeds the requests that bring no seed of their own")
    mesh: str | None = option(
        None,
        "device mesh, as axis=size pairs; dp is the number of replicas, the others make the mesh "
        "of each; default: all GPUs, tp as large as divides the KV heads, and dp the rest",
        group="devices and memory",
        axes={
            "tp": ("tp", "tp-size", "tensor-parallel-size"),
            "dp": ("dp", "dp-size", "data-parallel-size"),
            "ep": ("ep", "ep-size", "expert-parallel-size"),
        },
    )
    sharding_rules: str = option(
        "megatron",
        "what is spread over the mesh: a preset (megatron, replicated, mlp-only, attention-only, "
        "vocab-only, fsdp, fsdp-megatron), a .toml file, or pairs like mlp=tp,vocab=tp",
        group="devices and memory",
    )
    page_size: int = option(16, "tokens per KV page", low=1)
    max_total_tokens: int | None = option(
        None, "tokens whose KV the page pool holds; default: 32768 on CPU", low=1
    )
    max_num_reqs: int | None = option(
        None,
        "requests running at once; default: 16 on CPU, 256 elsewhere",
        low=1,
        aliases=("max_running_requests",),
        group="scheduling and cache",
    )
    max_queued_requests: int = option(
        1024, "requests waiting beyond those; more are refused", low=0
    )
    chunked_prefill_size: int | None = option(
        None, "most new tokens per step; default: 256 on CPU, 8192 elsewhere", low=1
    )
    chunked_prefill: bool = option(True, "compute long prompts over several steps")
    mixed_chunk: bool = option(
        True, "let prompt chunks and decoding rows share a step, but let prompts go first, alone"
    )
    max_itl_ms: float | None = option(
        None,
        "most milliseconds between two tokens of an answer: steps with decoding rows take no more "
        "of a prompt than keeps it; default: no bound",
    )
    num_continuous_decode_steps: int | None = option(
        None,
        "decode steps that devices do on end where no answer needs the host between them and the "
        "host is what they would wait for: tokens come so many at a time then; default: 6 on "
        "several GPUs, and on one with under 12 GB of weights, 1 elsewhere",
        low=1,
    )
    schedule_policy: str = option(
        "fcfs",
        "order in which waiting requests are admitted",
        choices=("fcfs", "lpm", "dfs-weight", "lof", "random", "priority"),
    )
    fair_queue: bool = option(
        True,
        "let API keys take turns by the tokens each was served; the schedule policy decides among "
        "the requests of one key",
    )
    key_quota: float | None = option(
        None,
        "share of KV pages and of --max-num-reqs, 0 to 1, beyond which running requests of a key "
        "give way to waiting ones of other keys; default: they run to their end",
    )
    priority_preemption_threshold: int = option(
        0,
        "with the priority policy: how much more urgent a request must be to displace another",
        aliases=("priority_scheduling_preemption_threshold",),
    )
    radix_eviction_policy: str = option(
        "lru", "which cached prefixes go first", choices=("lru", "lfu", "priority")
    )
    cache_quota: float | None = option(
        None,
        "share of the page pool, 0 to 1, beyond which a cache namespace loses its prefixes before "
        "others do; default: no namespace does",
    )
    radix_cache: bool = option(True, "share the KV of equal prefixes between requests")
    overlap: bool = option(
        True,
        "plan the next step while the device computes this one",
        aliases=("overlap_schedule",),
    )
    grammar_backend: str = option(
        "llguidance",
        "what compiles JSON Schemas: llguidance, or lark, the engine of all other grammars",
        choices=("llguidance", "lark"),
        group="grammars",
    )
    grammar_compile_timeout_s: float = option(
        5.0, "seconds that compiling a grammar may take; its requests are refused then"
    )
    grammar_cache_mb: int = option(256, "MiB of compiled grammars that are kept in memory")
    grammar_mask_cache_mb: int = option(64, "MiB of token masks and their parts that are kept")
    grammar_cache_dir: str | None = option(
        None, "folder that keeps compiled grammars between runs, up to --grammar-cache-mb"
    )
    step_trace: str | None = option(
        None,
        "file that gets a Chrome trace of the last steps when the engine stops",
        group="watching and breaking",
    )
    step_timeout_s: float = option(
        120.0,
        "seconds without a finished step after which a replica is given up and restarted",
        aliases=("watchdog_timeout",),
    )
    forbid_recompiles: bool = option(
        False, "fail a step that needs a program compiled, instead of waiting for it and counting"
    )
    inject_fault: str | None = option(
        None,
        "break on order, for tests: step:N:KIND or token:N:KIND, KIND being raise, oom, hang, "
        "exit, crash, kill or slow; with @R only in the first life of replica R",
    )
    attention_backend: str = option(
        "auto",
        "kernels for attention, token masks and draws; auto: the best that the devices run",
        choices=("auto", "triton", "tpu", "xla"),
        group="kernels and programs",
    )
    disable_flashinfer: bool = option(False, "the same as --attention-backend xla")
    gpu_memory_utilization_limit: float = option(
        0.9,
        "share of each GPU's memory that the engine may take, all in all",
        group="devices and memory",
    )
    mem_fraction_static: float | None = option(
        None,
        "share of that for weights and KV pages; default: what the largest step leaves",
    )
    compilation_cache_dir: str | None = option(
        None,
        "folder of compiled programs kept between runs; default: in the user's cache folder",
        group="kernels and programs",
    )
    nnodes: int = option(
        1,
        "machines that the one replica of this server spans, each running a process of it with an "
        "equal share of the mesh",
        low=1,
        group="several machines",
    )
    node_rank: int = option(0, "which of them this one is; 0 serves, the others follow it", low=0)
    dist_init_addr: str | None = option(
        None,
        "HOST:PORT of the machine of rank 0, where it waits for the others",
        aliases=("nccl_init_addr",),
    )
    world_key_file: str | None = option(
        None, "file with a secret of 16 characters or more, the same on all these machines"
    )


BALANCING_POLICIES = (
    "cache-aware",
    "round-robin",
    "min-load",
    "min-latency",
    "weighted",
    "power-of-two",
    "random",
)
LAUNCHERS = ("local", "ray", "static")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasConfig:
    """replicas"""

    launcher: str | None = option(
        None,
        "who starts the processes of replicas: local, this server on this machine; ray, a Ray "
        "cluster on its machines; static, people, one on each machine of --nnodes; default: "
        "static with --nnodes above 1, else local",
        choices=LAUNCHERS,
    )
    ray_address: str | None = option(
        None, "of the Ray cluster, as ray.init takes it; default: the one that this machine is in"
    )
    load_balancing_policy: str = option(
        "cache-aware", "which replica gets a request", choices=BALANCING_POLICIES
    )
    replica_weights: str | None = option(
        None, "shares of the weighted policy, as 2,1; default: by the models of the GPUs"
    )
    health_check_interval: float = option(
        60.0, "seconds between two probes of a replica that has nothing to do", low=0.1
    )
    max_unhealthy_gpus: int = option(
        0,
        "devices that may be in dead replicas at a time; beyond them the server drains and exits",
        low=0,
    )
    max_restarts: int = option(
        3, "restarts of one replica within 10 minutes; after them it stays dead", low=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """server"""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(30000, "port to listen on; 0 takes a free one")
    root_path: str = option(
        "",
        "path under which a proxy offers this server; paths with and without it are answered",
        aliases=("fastapi_root_path",),
    )
    cors_origin: tuple[str, ...] = option(
        (),
        "origin whose web pages may read answers, * for all; may be given several times",
        aliases=("allowed_origins",),
    )
    max_connections: int = option(
        16384, "connections open at once; requests on more are refused", low=1
    )
    drain_timeout_s: float = option(30.0, "seconds that running requests get after SIGTERM", low=0)
    stream_write_timeout_s: float = option(
        30.0, "seconds that a client may take to accept an event before it is aborted", low=0
    )
    tool_call_parser: str = option(
        "auto",
        "form in which the model writes tool calls; auto: the one of its chat template",
        choices=("auto", "hermes", "qwen", "llama3", "mistral", "pythonic"),
    )
    reasoning_parser: str | None = option(
        None,
        "form in which the model writes its reasoning, which then comes apart from the answer; "
        "default: it is part of the answer",
        choices=("deepseek-r1", "qwen3"),
    )
    ignore_unknown_fields: bool = option(
        False, "drop fields of requests that are not known instead of refusing the request"
    )
    api_key: tuple[str, ...] = option(
        (), "key that clients must send; may be given several times", group="keys and encryption"
    )
    api_key_file: str | None = option(None, "file with such keys, one a line")
    admin_api_key: tuple[str, ...] = option(
        (), "key for the routes of whoever operates the server; may be given several times"
    )
    metrics_without_key: bool = option(False, "answer /metrics to those who send no key")
    ssl_certfile: str | None = option(None, "PEM file of the server's certificate chain: HTTPS")
    ssl_keyfile: str | None = option(None, "PEM file of its key, if that is not in the same file")
    ssl_keyfile_password: str | None = option(None, "password of that file")
    log_level: str = option(
        "info",
        "least severe messages printed",
        choices=("debug", "info", "warning", "error"),
        group="logs and metrics",
    )
    log_level_http: str | None = option(
        None,
        "the same for the line that each HTTP request leaves; default: --log-level",
        choices=("debug", "info", "warning", "error"),
    )
    enable_metrics: bool = option(
        False,
        "follow the latencies of each replica, show them at /metrics and let min-latency use them",
    )
    metrics_prefix: str = option(
        "jaxsgl",
        "what the names at /metrics begin with; sglang gives the names and labels that SGLang's "
        "dashboards know",
    )
    log_format: str = option(
        "text", "lines for people, or one JSON object a line", choices=("text", "json")
    )
    log_requests: bool = option(False, "log every generation when it has ended")
    log_requests_level: int = option(
        0,
        "0 logs sizes and times, 1 sampling parameters too, 2 the beginning of prompt and answer, "
        "3 all of both",
        choices=(0, 1, 2, 3),
    )
    profile_dir: str | None = option(
        None, "folder that gets what /start_profile records; default: that of temporary files"
    )
