import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.interface import OperationFailed, Reshard
from jaxsgl.loading.checkpoint import open_checkpoint
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.models.llama import Llama
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.weights import device_bytes
from jaxsgl.runner import build
from jaxsgl.runner.buckets import make_buckets
from jaxsgl.runner.build import build_runner, choose_backend, plan_memory, step_sizes
from jaxsgl.runner.device_memory import DeviceMemory
from jaxsgl.runner.kv_cache import page_bytes
from jaxsgl.runner.memory import GIB
from jaxsgl.runner.platform import PLATFORMS
from jaxsgl.runner.programs import Programs
from jaxsgl.runner.weight_source import choose_form
from tests.loading.tiny_models import tiny_model, write_folder
from tests.models.tiny import GoldenModel, RandomModel, golden_model, one_device_mesh, tiny_config
from tests.runner.driver import Driver


def small(tmp_path, **options):
    """A configuration whose few programs compile fast."""
    sizes = {"max_num_reqs": 1, "chunked_prefill_size": 16, "max_total_tokens": 256}
    return EngineConfig(compilation_cache_dir=str(tmp_path), **(sizes | options))


def test_a_configuration_becomes_a_runner_that_is_ready(tmp_path):
    golden, reports = golden_model("tiny_llama"), []
    runner = build_runner(small(tmp_path), golden, lambda *report: reports.append(report))
    assert runner.limits.num_pages == 256 // 16 + 1
    assert runner.limits.max_context_len == 256
    assert runner.layout.notes == ()
    drawn = Driver(runner).generate([golden.input_ids.tolist()], 1, chunk=16)
    assert drawn == [[golden.logits[-1].argmax()]]
    assert runner.recompiles == 0
    loaded = [report[1:] for report in reports if report[0] == "loading weights"]
    weight_bytes = 4 * sum(map(np.size, golden.tensors.values()))
    assert loaded == sorted(loaded) and loaded[-1] == (weight_bytes, weight_bytes)
    compiled = [report[1:] for report in reports if report[0] == "compiling programs"]
    assert compiled == [(done, len(compiled)) for done in range(1, len(compiled) + 1)]
    assert any(tmp_path.iterdir())
    runner.close()


@pytest.mark.long
def test_damaged_programs_on_disk_are_compiled_anew(tmp_path):
    golden = golden_model("tiny_llama")
    build_runner(small(tmp_path), golden, lambda *_: None).close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(b"garbage")
    jax.clear_caches()
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        runner = build_runner(small(tmp_path), golden, lambda *_: None)
    assert first_token(runner, golden) == golden.logits[-1].argmax()
    runner.close()


@pytest.mark.long
def test_a_folder_for_programs_that_cannot_be_written_only_costs_time(tmp_path):
    golden, no_folder = golden_model("tiny_llama"), tmp_path / "file"
    no_folder.write_text("")
    jax.clear_caches()
    with pytest.warns(UserWarning, match="persistent compilation cache"):
        runner = build_runner(small(no_folder / "xla"), golden, lambda *_: None)
    assert first_token(runner, golden) == golden.logits[-1].argmax()
    runner.close()


def first_token(runner, golden):
    return Driver(runner).generate([golden.input_ids.tolist()], 1, chunk=16)[0][0]


def test_sizes_follow_platform_and_settings():
    model = tiny_config(context_len=2048)
    cpu = step_sizes(EngineConfig(), model, PLATFORMS["cpu"], "xla")
    assert (cpu.num_slots, cpu.max_rows, cpu.max_tokens, cpu.max_logits) == (16, 16, 256, 256)
    assert cpu.max_pages_per_row == 2048 // 16
    gpu = step_sizes(EngineConfig(), model, PLATFORMS["gpu"], "triton")
    assert (gpu.num_slots, gpu.max_rows, gpu.max_tokens, gpu.max_logits) == (256, 256, 8192, 256)

    assert gpu.mixed_sizes == (32, 128, 256, 512, 1024, 2048, 4096, 8192)
    promised = EngineConfig(max_itl_ms=80.0, chunked_prefill_size=3000)
    gpu = step_sizes(promised, model, PLATFORMS["gpu"], "triton")
    assert gpu.mixed_sizes == (32, 128, 256, 512, 768, 1024, 1536, 2048, 2524, 3000)
    mixed = [b.num_tokens for b in make_buckets(gpu, PLATFORMS["gpu"].sizes) if b.mode == "mixed"]
    assert tuple(mixed) == gpu.mixed_sizes

    whole = EngineConfig(chunked_prefill=False, context_length=100)
    assert step_sizes(whole, model, PLATFORMS["cpu"], "xla").max_tokens == 100
    assert step_sizes(whole, model, PLATFORMS["cpu"], "xla").max_pages_per_row == 7
    many = EngineConfig(max_num_reqs=500, chunked_prefill_size=64)
    assert step_sizes(many, model, PLATFORMS["cpu"], "xla").max_tokens == 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 257}, "--context-length 257 is beyond the model's own 256"),
        ({"mesh": "pp=2"}, "write it like tp=2"),
        ({"sharding_rules": "zero"}, "sharding rules 'zero' are not known"),
        ({"sharding_rules": "mlp=fsdp"}, "maps mlp to 'fsdp'; the mesh has tp=1"),
    ],
)
def test_a_setting_that_cannot_be_met_is_one_line(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        build_runner(small(tmp_path, **options), RandomModel(tiny_config()), lambda *report: None)
    assert "\n" not in str(error.value)


def test_a_page_s_bytes_are_those_of_the_arrays():
    config = tiny_config(num_q_heads=8)
    whole = resolve_layout(config, AbstractMesh((1,), ("tp",)))
    layers, k_and_v, page_size, kv_heads, head_dim, itemsize = 2, 2, 16, 2, 16, 2
    head_bytes = layers * k_and_v * page_size * head_dim * itemsize
    assert page_bytes(config, whole, 16, jnp.bfloat16) == kv_heads * head_bytes
    for tp in (2, 4):  # one kv head on each device, repeated on four
        spread = resolve_layout(config, AbstractMesh((tp,), ("tp",)))
        assert page_bytes(config, spread, 16, jnp.bfloat16) == head_bytes


def planned(**options):
    config = EngineConfig(page_size=16, **options)
    model = tiny_config(num_layers=4)
    layout = resolve_layout(model, one_device_mesh())
    sizes = step_sizes(config, model, PLATFORMS["gpu"], "triton")
    stats = {"bytes_limit": 8 * GIB, "bytes_in_use": GIB}
    abstract = Llama(model, layout, jnp.bfloat16)
    return plan_memory(config, model, layout, sizes, abstract, jnp.bfloat16, stats)


def test_pages_take_what_weights_and_steps_leave():
    plan = planned()
    assert plan.page == 2 * 4 * 16 * 2 * 16 * 2
    assert 0 <= plan.free < plan.page
    layout = resolve_layout(tiny_config(), one_device_mesh())
    model = Llama(tiny_config(num_layers=4), layout, jnp.bfloat16)
    assert plan.weights == device_bytes(model, layout)


def test_pages_of_bytes_are_twice_as_many_up_to_what_kernels_address():
    plan, wide = planned(kv_cache_dtype="fp8_e4m3"), planned()
    assert 2 * plan.page == wide.page
    layer_bytes = 16 * 2 * 16  # of a page's keys
    assert plan.num_pages == min(2 * wide.num_pages, (2**31 - 1) // layer_bytes)


def test_a_share_for_weights_and_pages_can_be_given():
    half = planned(mem_fraction_static=0.5)
    assert 0 <= 4 * GIB - half.weights - half.slots - half.kv < half.page
    half.require_room()
    with pytest.raises(ConfigError, match="does not fit"):
        planned(mem_fraction_static=1.0).require_room()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mem_fraction_static": 0.0}, "--mem-fraction-static 0 is not a share between 0 and 1"),
        (
            {"gpu_memory_utilization_limit": 1.5},
            "--gpu-memory-utilization-limit 1.5 is not a share between 0 and 1",
        ),
        ({"attention_backend": "triton"}, "triton does not run on cpu"),
    ],
)
def test_shares_and_kernels_that_make_no_sense_are_one_line(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        build_runner(small(tmp_path, **options), RandomModel(tiny_config()), lambda *report: None)


@pytest.mark.parametrize("head_dim", [576, 8])
def test_heads_that_triton_cannot_load_go_to_xla(head_dim):
    model, gpu = tiny_config(head_dim=head_dim), PLATFORMS["gpu"]
    assert choose_backend(EngineConfig(), gpu, model) == "xla"
    with pytest.raises(ConfigError, match=f"dimensions, not {head_dim}"):
        choose_backend(EngineConfig(attention_backend="triton"), gpu, model)
    assert choose_backend(EngineConfig(), gpu, tiny_config(head_dim=96)) == "triton"


class Torn(GoldenModel):
    def tensor(self, name):
        raise CheckpointError("torn")


def test_a_checkpoint_that_cannot_be_read_ends_the_compilation(tmp_path):
    golden, reports = golden_model("tiny_llama"), []
    torn = Torn(golden.config, golden.tensors, golden.input_ids, golden.logits)
    with pytest.raises(CheckpointError, match="torn"):
        build_runner(small(tmp_path), torn, lambda *report: reports.append(report))
    assert reports == []
    assert not any(tmp_path.iterdir())  # nothing was compiled
    assert not [
        each for each in threading.enumerate() if each.name.startswith(("trace", "compile"))
    ]


def test_room_for_steps_and_pages_is_held_while_weights_are_loaded(tmp_path, monkeypatch):
    """On a CPU as on devices whose memory is planned."""
    alive: dict[str, jax.Array] = {}
    events: list[tuple[str, list[str]]] = []

    def note(event):
        events.append((event, [name for name, array in alive.items() if not array.is_deleted()]))

    def take_room(mesh, num_bytes):
        alive["room"] = jnp.zeros(1)
        return alive["room"]

    class Watched(Programs):
        def __init__(self, *args):
            super().__init__(*args)
            self.allocate_kv = self._watched_pages

        def _watched_pages(self):
            note("pages")
            keys, values = self._kv()
            alive.update(keys=keys, values=values)
            return keys, values

        def compile(self, progress, may_begin=None):
            may_begin.add_done_callback(lambda _: note("compiling"))
            return super().compile(progress, may_begin)

    plan = dataclasses.replace(planned(), num_pages=17)
    monkeypatch.setattr(build, "_given_pages", lambda *_: None)
    monkeypatch.setattr(build, "plan_memory", lambda *_: plan)
    monkeypatch.setattr(build, "_take_room", take_room)
    monkeypatch.setattr(build, "Programs", Watched)

    def progress(stage, done, total):
        if stage == "loading weights":
            note(stage)

    runner = build_runner(small(tmp_path), golden_model("tiny_llama"), progress)
    everything = ["room", "keys", "values"]
    num_weights = len(runner.programs.weights)
    assert events == [
        ("pages", ["room"]),
        *[("loading weights", everything)] * num_weights,
        ("compiling", ["room"]),
        ("pages", ["room"]),
    ]
    assert alive["room"].is_deleted()
    runner.close()


def test_a_load_that_fails_gives_back_what_was_held(tmp_path, monkeypatch):
    """Though the error is still looked at, as a notebook does."""
    rooms = []

    def take_room(mesh, num_bytes):
        rooms.append(jnp.zeros(num_bytes, jnp.uint8))
        return rooms[0]

    plan = dataclasses.replace(planned(), num_pages=1000, steps=1 << 20)
    monkeypatch.setattr(build, "_given_pages", lambda *_: None)
    monkeypatch.setattr(build, "plan_memory", lambda *_: plan)
    monkeypatch.setattr(build, "_take_room", take_room)
    golden = golden_model("tiny_llama")
    torn = Torn(golden.config, golden.tensors, golden.input_ids, golden.logits)
    before = live_bytes()
    with pytest.raises(CheckpointError, match="torn"):
        build_runner(small(tmp_path), torn, lambda *report: None)
    assert rooms[0].is_deleted()
    assert live_bytes() - before < 1 << 20


def live_bytes():
    return sum(array.nbytes for array in jax.live_arrays() if not array.is_deleted())


def test_a_move_without_room_for_its_pages_leaves_the_model_where_it_was(tmp_path, monkeypatch):
    def full():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room for pages")

    model = golden_model("tiny_llama")
    runner = build_runner(small(tmp_path), model, lambda *report: None)
    expected = Driver(runner).generate([PROMPT], 6)
    move = runner.prepare(Reshard(sharding_rules="replicated"))
    with monkeypatch.context() as patched:
        # Only the first time: those that come back fit, as they did before.
        allocations = iter([full])
        allocate = DeviceMemory._allocate_kv
        patched.setattr(
            DeviceMemory, "_allocate_kv", lambda m: next(allocations, lambda: allocate(m))()
        )
        with pytest.raises(OperationFailed, match="no room for pages"):
            move()
    assert Driver(runner).generate([PROMPT], 6) == expected
    runner.close()


PROMPT = [3, 1, 4, 1, 5]


@pytest.mark.parametrize("load_format", ["dummy", "safetensors"])
@pytest.mark.parametrize("quantization", [None, "fp8"])
def test_weights_alone_are_left_of_loading(tmp_path, load_format, quantization):
    checkpoint = open_checkpoint(write_folder(tmp_path, tiny_model()), load_format)
    form = choose_form(quantization, checkpoint)
    layout = resolve_layout(checkpoint.config, one_device_mesh())
    before = jax.live_arrays()
    model = form.load(checkpoint, layout, jnp.bfloat16)
    known = {id(array) for array in (*before, *jax.tree.leaves(model))}
    left = [array for array in jax.live_arrays() if id(array) not in known]
    assert not [array.shape for array in left if not array.is_deleted()]
