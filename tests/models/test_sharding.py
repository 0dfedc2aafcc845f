import dataclasses

import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jaxsgl.models.model_config import Experts, ModelConfig
from jaxsgl.models.sharding import resolve_layout
from jaxsgl.models.sharding_rules import MEGATRON, PRESETS, RulesError, rules_of

LLAMA_8B = ModelConfig(
    architecture="llama",
    vocab_size=128256,
    hidden_size=4096,
    num_layers=32,
    num_q_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_size=14336,
    norm_eps=1e-5,
    rope_theta=500000.0,
    context_len=131072,
    tie_embeddings=False,
)
SMOLLM2 = dataclasses.replace(
    LLAMA_8B,
    vocab_size=49152,
    hidden_size=576,
    num_q_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_size=1536,
)
OF_A_DENSE_MODEL = {axis: to for axis, to in MEGATRON.axes if axis != "experts"}


def mesh(tp: int, **others: int) -> AbstractMesh:
    sizes = {"tp": tp} | others
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_what_divides_is_spread(tp):
    layout = resolve_layout(LLAMA_8B, mesh(tp))
    assert dict(layout.rules) == OF_A_DENSE_MODEL
    assert layout.kv_repeat == 1
    assert layout.notes == ()
    assert layout.spec(None, None, "kv_heads", None) == PartitionSpec(None, None, "tp", None)
    assert layout.spec("embed", "mlp") == PartitionSpec(None, "tp")


def test_kv_heads_are_repeated_where_that_gives_whole_groups():
    layout = resolve_layout(LLAMA_8B, mesh(16))
    assert layout.kv_repeat == 2
    assert dict(layout.rules) == OF_A_DENSE_MODEL
    assert layout.notes == ("each of 8 kv heads repeated 2 times",)


@pytest.mark.parametrize("tp", [2, 4])
def test_heads_that_do_not_divide_stay_whole(tp):
    layout = resolve_layout(SMOLLM2, mesh(tp))
    assert dict(layout.rules) == {"mlp": ("tp",), "vocab": ("tp",)}
    assert layout.kv_repeat == 1
    (note,) = layout.notes
    assert note == (f"attention replicated: 9 query and 3 kv heads do not spread over {tp} devices")


def test_smollm2_heads_divide_by_three():
    layout = resolve_layout(SMOLLM2, mesh(3))
    assert dict(layout.rules) == OF_A_DENSE_MODEL
    assert layout.notes == ()


def test_matrices_lie_as_their_device_reads_them():
    orders = {}
    for order in ("inputs first", "in tiles"):
        layout = resolve_layout(LLAMA_8B, mesh(2), matrix_order=order)
        gate_up = layout.placement(("mlp", None, "embed"), 2, (14336, 2, 4096))
        out = layout.placement(("embed", "q_heads", None), 1, (4096, 32, 128))
        qkv = layout.placement(("kv_heads", None, None, "embed"), 3, (8, 6, 128, 4096))
        orders[order] = [each.layout.major_to_minor for each in (gate_up, out, qkv)]
        assert gate_up.sharding == layout.sharding("mlp", None, "embed")
    assert orders["inputs first"] == [(2, 0, 1), (1, 2, 0), (3, 0, 1, 2)]
    assert orders["in tiles"] == [(1, 0, 2), (1, 0, 2), (0, 1, 2, 3)]


def test_an_odd_vocabulary_is_replicated():
    layout = resolve_layout(dataclasses.replace(LLAMA_8B, vocab_size=32001), mesh(2))
    assert "vocab" not in dict(layout.rules)
    assert layout.notes == ("vocab replicated: 2 devices do not divide 32001",)


def test_rules_are_data():
    layout = resolve_layout(LLAMA_8B, mesh(4), rules_of({"embed": "tp"}, "mine"))
    assert layout.spec("vocab", "embed") == PartitionSpec(None, "tp")
    assert layout.spec("embed", "q_heads", None) == PartitionSpec("tp", None, None)
    assert layout.num_parts("embed") == 4
    assert layout.num_parts("mlp") == 1


def test_an_axis_may_be_spread_over_several_mesh_axes():
    rules = rules_of({"mlp": ["fsdp", "tp"], "q_heads": "tp", "kv_heads": "tp"}, "mine")
    layout = resolve_layout(LLAMA_8B, mesh(2, fsdp=4), rules)
    assert layout.spec("mlp", None, "embed") == PartitionSpec(("fsdp", "tp"), None, None)
    assert layout.num_parts("mlp") == 8
    assert layout.spec("kv_heads") == PartitionSpec("tp")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [{"tp": 2}, {"tp": 8}, {"tp": 2, "fsdp": 2}])
def test_presets_fit_every_mesh(name, shape):
    layout = resolve_layout(LLAMA_8B, mesh(**shape), PRESETS[name])
    for axis, mesh_axes in layout.rules:
        assert set(mesh_axes) <= set(dict(PRESETS[name].axes)[axis])


def test_fsdp_takes_the_mesh_axes_that_there_are():
    for shape, over in ({"tp": 2}, "tp"), ({"tp": 2, "fsdp": 2}, ("fsdp", "tp")):
        layout = resolve_layout(LLAMA_8B, mesh(**shape), PRESETS["fsdp"])
        assert layout.spec("mlp", None, "embed") == PartitionSpec(None, None, over)


def test_devices_that_do_nothing_of_their_own_are_noted():
    layout = resolve_layout(LLAMA_8B, mesh(2, fsdp=4))
    assert layout.notes == ("mesh axis fsdp repeats work: nothing is spread over its 4 devices",)
    assert resolve_layout(LLAMA_8B, mesh(1, fsdp=4), PRESETS["fsdp"]).notes == ()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"mlp": "fsdp"}, "maps mlp to 'fsdp'; the mesh has tp=2"),
        ({"q_heads": "tp"}, "same mesh axis"),
        ({"embed": "tp", "mlp": "tp"}, "'mine': mlp and embed are axes of one weight and cannot"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules, message):
    with pytest.raises(RulesError, match=message):
        resolve_layout(LLAMA_8B, mesh(2), rules_of(rules, "mine"))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"mlp": "tp"}, "'mine': mlp: 5 devices do not divide 14336"),
        ({"vocab": "tp"}, "'mine': vocab: 5 devices do not divide 128256"),
        (
            {"q_heads": "tp", "kv_heads": "tp"},
            "'mine': attention: 32 query and 8 kv heads do not spread over 5 devices",
        ),
    ],
)
def test_what_a_person_wrote_is_not_adapted(rules, message):
    with pytest.raises(RulesError, match=message):
        resolve_layout(LLAMA_8B, mesh(5), rules_of(rules, "mine"))


MIXTRAL = dataclasses.replace(LLAMA_8B, experts=Experts(8, 2, 14336, normalised=True))


def test_experts_are_shared_out_over_an_axis_of_their_own():
    layout = resolve_layout(MIXTRAL, AbstractMesh((2, 4), ("tp", "ep")))
    assert layout.spec("experts", "embed", "mlp", None) == PartitionSpec("ep", None, "tp", None)
    assert layout.notes == ()
    odd = dataclasses.replace(MIXTRAL, experts=Experts(6, 2, 14336, normalised=True))
    layout = resolve_layout(odd, AbstractMesh((2, 4), ("tp", "ep")))
    assert layout.spec("experts") == PartitionSpec(None)
    assert "experts replicated: 4 devices do not divide 6" in layout.notes


def test_a_dense_model_has_no_use_for_an_axis_of_experts():
    (note,) = resolve_layout(LLAMA_8B, AbstractMesh((2, 2), ("tp", "ep"))).notes
    assert note == "mesh axis ep repeats work: nothing is spread over its 2 devices"
