import pytest

from jaxsgl.models.sharding_rules import PRESETS, RulesError, read_rules, rules_text


def axes(text: object) -> dict[str, tuple[str, ...]]:
    return dict(read_rules(str(text)).axes)


def test_a_preset_goes_by_its_name():
    assert read_rules("megatron") is PRESETS["megatron"]
    assert axes("replicated") == {}
    assert axes("fsdp") == {"embed": ("fsdp", "tp")}


def test_pairs_say_the_same_as_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[rules]\nmlp = ["fsdp", "tp"]\nvocab = "tp"\nembed = []\n')
    rules = read_rules(str(path))
    assert rules.name == "mine" and not rules.adapts
    assert dict(rules.axes) == {"mlp": ("fsdp", "tp"), "vocab": ("tp",)}
    assert axes("mlp=fsdp+tp, vocab=tp") == dict(rules.axes)


@pytest.mark.parametrize("mapping", [{"mlp": ["fsdp", "tp"], "vocab": "tp"}, {"embed": "tp"}, {}])
def test_a_mapping_has_a_text(mapping):
    wanted = {axis: (to,) if isinstance(to, str) else tuple(to) for axis, to in mapping.items()}
    assert axes(rules_text(mapping)) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zero", "'zero' are not known; there are megatron, replicated, "),
        ("", "'' are not known"),
        ("heads=tp", "rule for 'heads'; axes are vocab, embed, q_heads, kv_heads, mlp"),
        ("mlp=tp,mlp=tp", "name mlp twice"),
        ("mlp=tp+tp", "rule mlp names a mesh axis twice"),
        ("mlp=", "rule mlp = "),
        ("/nowhere/mine.toml", "/nowhere/mine.toml: cannot be read"),
    ],
)
def test_other_texts_are_one_line(text, message):
    with pytest.raises(RulesError, match=message) as error:
        read_rules(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a table \\[rules\\] is wanted"),
        ("rules = 3", "a table \\[rules\\] is wanted"),
        ('[rules]\nmlp = "tp"\n[more]\n', "and nothing else: not more"),
        ("[rules]\nmlp = 3", "rule mlp = 3; it takes a mesh axis or a list of them"),
        ('[rules]\nheads = "tp"', "rule for 'heads'"),
        ("[rules", "Expected ']'"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(tmp_path, content, message):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(RulesError, match=message) as error:
        read_rules(str(path))
    assert str(path) in str(error.value)


def test_a_mapping_of_something_else_is_refused():
    with pytest.raises(RulesError, match="rule mlp = 2"):
        rules_text({"mlp": 2})
