"""SentencePiece's vocabularies from GGUF metadata, against its algorithm written out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from jaxsgl.tokenizer import Tokenizer, load_tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "[INST]"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = "\u2581"
LETTERS = [SPACE, *"abcdehlortw"]
# As trained: what was joined first has the best score.
PIECES = ["he", "ll", "lo", "or", f"{SPACE}w", "hell", "hello", "ld", f"{SPACE}he", "world", "wor"]
PIECES += [f"{SPACE}hello", "orl", "aa", "aaa", "aaaa"]
TOKENS = [*SPECIAL, *BYTES, *PIECES, *LETTERS]
FIRST_PIECE = len(SPECIAL) + len(BYTES)
KINDS = [2, 3, 3, 4] + [6] * 256 + [1] * (len(PIECES) + len(LETTERS))
SCORES = [0.0] * FIRST_PIECE + [-float(i) for i in range(len(PIECES) + len(LETTERS))]


def tokenizer(**changes: Any) -> Tokenizer:
    fields: dict[str, Any] = {
        "model": "llama",
        "tokens": TOKENS,
        "scores": np.array(SCORES, np.float32),
        "token_type": np.array(KINDS, np.int32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return load_tokenizer({f"tokenizer.ggml.{key}": v for key, v in (fields | changes).items()})


def by_the_algorithm(text: str) -> list[int]:
    """Join the two neighbours that make the piece of best score, leftmost first; bytes for the
    rest."""
    ids = {token: id_ for id_, token in enumerate(TOKENS) if id_ >= FIRST_PIECE}
    symbols = list(text.replace(" ", SPACE))
    while True:
        joints = [
            (-SCORES[ids[left + right]], place)
            for place, (left, right) in enumerate(itertools.pairwise(symbols))
            if left + right in ids
        ]
        if not joints:
            break
        place = min(joints)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    found: list[int] = []
    for symbol in symbols:
        bytes_ = [len(SPECIAL) + byte for byte in symbol.encode()]
        found += [ids[symbol]] if symbol in ids else bytes_
    return found


TEXTS = [
    "hello world",
    "hell",
    "aaaaa",
    "aaaaaaa",
    " hello",
    "worldly",
    "caf\u00e9 \u4e16",
    "",
    "\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_joined_as_sentencepiece_does(text: str) -> None:
    plain = tokenizer(add_space_prefix=False, add_bos_token=False)
    assert plain.encode(text) == by_the_algorithm(text)
    assert plain.decode(plain.encode(text)) == text


def test_random_texts() -> None:
    draw = np.random.default_rng(0)
    plain = tokenizer(add_space_prefix=False, add_bos_token=False)
    for _ in range(300):
        text = "".join(draw.choice([" ", *"abcdehlortw", "x"], size=draw.integers(1, 30)))
        assert plain.encode(text) == by_the_algorithm(text), text


def test_a_prompt_begins_with_its_token_and_a_space() -> None:
    assert tokenizer().encode("hello") == [1, *by_the_algorithm(" hello")]
    assert tokenizer().encode_continuation("hello") == by_the_algorithm("hello")
    assert tokenizer(add_bos_token=False).encode("hello") == by_the_algorithm(" hello")


def test_control_tokens_that_are_written_out_stay_text() -> None:
    plain = tokenizer(add_space_prefix=False, add_bos_token=False)
    assert 2 not in plain.encode("</s>")
    assert plain.eos_token_ids == (2,)
    assert plain.decode([2, FIRST_PIECE]) == "he"
