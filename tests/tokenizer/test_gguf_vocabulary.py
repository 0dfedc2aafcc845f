"""Tokenizers from GGUF metadata: families, special tokens, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxsgl.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from jaxsgl.tokenizer.token_bytes import byte_level_characters

BOS, EOS, TOOL = "<|begin|>", "<|im_end|>", "<tool>"
# G with a dot stands for a space in the byte-level alphabet.
MERGED = ["12", "123", "1234", "ab", "abc", "\u0120x", "\u0120\u0120"]
MERGES = ["1 2", "12 3", "123 4", "a b", "\u0120 x", "\u0120 \u0120"]
TOKENS = [BOS, EOS, TOOL, *sorted(byte_level_characters()), *MERGED]


def metadata(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": TOKENS,
        "token_type": np.array([3, 3, 4] + [1] * (len(TOKENS) - 3), np.int32),
        "merges": MERGES,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    merged = fields | changes
    return {f"tokenizer.ggml.{key}": value for key, value in merged.items() if value is not None}


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([id_], skip_special=False) for id_ in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("cut", "number", "spaces"),
    [
        ("gpt-2", ["1234"], ["a", " ", " x", " ", "1"]),
        ("smollm", ["1", "2", "3", "4"], ["a", " ", " x", " ", "1"]),
        ("starcoder", ["1", "2", "3", "4"], ["a", " ", " x", " ", "1"]),
        ("llama-bpe", ["123", "4"], ["a", " ", " x", " ", "1"]),
        ("qwen2", ["1", "2", "3", "4"], ["a", " ", " x", " ", "1"]),
    ],
)
def test_families_cut_numbers_differently(cut: str, number: list[str], spaces: list[str]) -> None:
    tokenizer = load_tokenizer(metadata(pre=cut))
    assert pieces(tokenizer, "1234") == number
    assert pieces(tokenizer, "a  x 1") == spaces


def test_families_cut_white_space_before_numbers_differently() -> None:
    assert pieces(load_tokenizer(metadata(pre="gpt-2")), "a  1") == ["a", " ", " ", "1"]
    assert pieces(load_tokenizer(metadata(pre="smollm")), "a  1") == ["a", "  ", "1"]


def test_llama3_takes_whole_words_of_the_vocabulary_first() -> None:
    # No pair of the merges makes "abc".
    assert pieces(load_tokenizer(metadata(pre="llama-bpe")), "abc") == ["abc"]
    assert pieces(load_tokenizer(metadata(pre="gpt-2")), "abc") == ["ab", "c"]


def test_qwen2_composes_characters() -> None:
    decomposed = "e\u0301"
    composed = load_tokenizer(metadata(pre="qwen2"))
    assert composed.decode(composed.encode(decomposed)) == "é"
    kept = load_tokenizer(metadata(pre="gpt-2"))
    assert kept.decode(kept.encode(decomposed)) == decomposed


def test_control_tokens_are_text_and_user_defined_ones_are_tokens() -> None:
    tokenizer = load_tokenizer(metadata())
    assert pieces(tokenizer, TOOL) == [TOOL]
    assert BOS not in pieces(tokenizer, BOS)
    assert tokenizer.token_bytes[:3] == [b"", b"", TOOL.encode()]
    assert tokenizer.special_token_texts == {0: BOS, 1: EOS}


def test_a_token_that_begins_every_prompt() -> None:
    tokenizer = load_tokenizer(metadata(add_bos_token=True))
    plain = tokenizer.encode("ab", add_special_tokens=False)
    assert tokenizer.encode("ab") == [0, *plain]
    assert load_tokenizer(metadata(add_bos_token=False)).encode("ab") == plain
    odd_text = ["$A:7", *TOKENS[1:]]
    assert load_tokenizer(metadata(add_bos_token=True, tokens=odd_text)).encode("ab") == [0, *plain]
    assert load_tokenizer(metadata()).encode("ab") == plain


def test_ends_of_an_answer() -> None:
    assert load_tokenizer(metadata()).eos_token_ids == (1,)
    assert load_tokenizer(metadata(eos_token_id=0)).eos_token_ids == (0, 1)
    assert load_tokenizer(metadata(eos_token_id=None, eot_token_id=0)).eos_token_ids == (0, 1)


def test_without_named_tokens() -> None:
    tokens = TOKENS[3:]
    kinds = np.ones(len(tokens), np.int32)
    nothing = {"tokens": tokens, "token_type": kinds, "bos_token_id": None, "eos_token_id": None}
    tokenizer = load_tokenizer(metadata(**nothing, add_bos_token=True))
    assert tokenizer.eos_token_ids == ()
    assert tokenizer.bos_token_id is None
    assert tokenizer.decode(tokenizer.encode("1234 🦊")) == "1234 🦊"


def test_chat_templates() -> None:
    messages = [{"role": "user", "content": "ab"}]
    without = load_tokenizer(metadata())
    assert not without.has_chat_template
    with pytest.raises(TokenizerError, match="no chat template"):
        without.encode_chat(messages)

    own = {"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}
    tokenizer = load_tokenizer(metadata() | own)
    assert tokenizer.encode_chat(messages) == [0, *tokenizer.encode("ab"), 1]
    replaced = load_tokenizer(metadata() | own, chat_template="{{ messages[0].content }}")
    assert replaced.encode_chat(messages) == tokenizer.encode("ab")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert'; known: gpt2, llama"),
        ({"model": "llama"}, "tokenizer.ggml.scores is missing"),
        ({"model": "llama", "scores": np.zeros(3)}, "tokenizer.ggml.scores has 3 entries"),
        (
            {"model": "llama", "scores": np.full(len(TOKENS), np.nan)},
            "tokenizer.ggml.scores has a value that is not finite",
        ),
        ({"model": None}, "tokenizer.ggml.model is missing"),
        ({"pre": "viking"}, "tokenizer.ggml.pre is 'viking', which is unknown; known: gpt-2, "),
        ({"pre": None}, "tokenizer.ggml.pre is missing"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokens": 7}, "tokenizer.ggml.tokens is not an array of strings"),
        ({"tokens": [*TOKENS[:-1], "a"]}, "tokenizer.ggml.tokens has a token twice"),
        ({"tokens": [*TOKENS[:-1], ""]}, "tokenizer.ggml.tokens has a token twice, or an empty"),
        ({"token_type": None}, "tokenizer.ggml.token_type is missing"),
        ({"token_type": np.ones(3, np.int32)}, "tokenizer.ggml.token_type has 3 entries"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"merges": ["ab"]}, "tokenizer.ggml.merges is unusable"),
        ({"merges": ["a nothing"]}, "tokenizer.ggml.merges is unusable"),
        ({"eos_token_id": len(TOKENS)}, "tokenizer.ggml.eos_token_id is no id"),
        ({"bos_token_id": -1}, "tokenizer.ggml.bos_token_id is no id"),
        ({"bos_token_id": "0"}, "tokenizer.ggml.bos_token_id is no id"),
    ],
)
def test_refuses_in_one_line(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(metadata(**changes))
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_of_another_type_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.chat_template is not a string"):
        load_tokenizer(metadata() | {"tokenizer.chat_template": 7})
