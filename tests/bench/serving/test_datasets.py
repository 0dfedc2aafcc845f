"""What is asked."""

import json

import pytest

from bench.serving.arguments import parse
from bench.serving.datasets import DATASETS, make_conversations, read_conversations

SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "What is the highest mountain?"},
        {"from": "gpt", "value": "x" * 40},
    ]
}


def make(*flags, seed=0, chat=False):
    return make_conversations(parse(list(flags)), seed, chat=chat)


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    entries = [{"prompt": "one"}, {"prompt": [5, 6], "output_len": 3}, SHAREGPT]
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("dataset", DATASETS)
def test_a_seed_decides_the_prompts(dataset, chat, prompts_file):
    flags = ["--dataset", dataset, "--num-prompts", "13", "--dataset-path", str(prompts_file)]
    made = make(*flags, chat=chat)
    assert sum(map(len, made)) == 13
    assert made == make(*flags, chat=chat)
    assert (made != make(*flags, seed=1, chat=chat)) == (dataset != "file")


def test_random_prompts_have_their_lengths():
    turns = [turn for (turn,) in make("--input-len", "10", "--output-len", "7")]
    assert {(len(turn.prompt), turn.output_len) for turn in turns} == {(10, 7)}
    assert len({tuple(turn.prompt) for turn in turns}) == 64
    flags = ["--input-len", "10", "--range-ratio", "0.5", "--num-prompts", "200"]
    assert {len(turn.prompt) for (turn,) in make(*flags)} == set(range(5, 11))
    words = [turn.prompt for (turn,) in make("--prompt-form", "text", "--input-len", "10")]
    assert {len(prompt.split()) for prompt in words} == {10}


def test_prefixes_are_shared_equally():
    flags = ["--dataset", "shared-prefix", "--input-len", "20", "--prefix-len", "15"]
    prompts = [turn.prompt for (turn,) in make(*flags, "--num-prefixes", "4")]
    prefixes = [tuple(prompt[:15]) for prompt in prompts]
    assert {len(prompt) for prompt in prompts} == {20}
    assert sorted(map(prefixes.count, set(prefixes))) == [16] * 4
    assert len({tuple(prompt[15:]) for prompt in prompts}) == 64


def test_a_tree_forks_at_each_level():
    flags = ["--dataset", "tree", "--input-len", "20", "--prefix-len", "10", "--num-prompts", "300"]
    prompts = [turn.prompt for (turn,) in make(*flags, "--tree-depth", "3", "--tree-width", "2")]
    assert {len(prompt) for prompt in prompts} == {20}
    forks = [len({tuple(prompt[:length]) for prompt in prompts}) for length in (3, 6, 10, 20)]
    assert forks == [2, 4, 8, 300]


@pytest.mark.parametrize("chat", [False, True])
def test_chats_share_their_system_prompt(chat):
    made = make("--dataset", "multi-turn", "--turns", "3", "--num-prompts", "8", chat=chat)
    assert [len(conversation) for conversation in made] == [3, 3, 2]
    firsts = [conversation[0].prompt for conversation in made]
    systems = [first[0]["content"] if chat else first.split("\n")[0] for first in firsts]
    assert len(set(systems)) == 1
    assert len({str(turn.prompt) for conversation in made for turn in conversation}) == 8


def test_schemas_ask_for_every_member():
    schemas = [turn.schema for (turn,) in make("--dataset", "json-schema")]
    assert len({schema["required"][0] for schema in schemas}) == 4
    for schema in schemas:
        assert schema["required"] == list(schema["properties"])


def test_a_file_is_read_in_order_and_again(prompts_file):
    flags = ["--dataset", "file", "--dataset-path", str(prompts_file), "--num-prompts", "4"]
    turns = [turn for (turn,) in make(*flags, "--output-len", "9")]
    assert [(turn.prompt, turn.output_len) for turn in turns] == [
        ("one", 9),
        ([5, 6], 3),
        ("What is the highest mountain?", 10),
        ("one", 9),
    ]


def test_a_list_in_one_file_will_do_and_answers_without_a_question_will_not(tmp_path):
    path = tmp_path / "sharegpt.json"
    unasked = {"conversations": [{"from": "gpt", "value": "Hello"}]}
    path.write_text(json.dumps([unasked, SHAREGPT]))
    assert len(read_conversations(path, 5)) == 1
    for bad in ('{"prompt": 3', '{"question": "?"}', "[3]", json.dumps([unasked])):
        path.write_text(bad)
        with pytest.raises(ValueError):
            read_conversations(path, 5)
