import numpy as np
import pytest

from jaxsgl.grammar.budget import ByteLru
from jaxsgl.grammar.compiled import GrammarMemory, TableGrammar
from jaxsgl.grammar.compiler import compile_tables
from jaxsgl.grammar.limits import DEFAULT_LIMITS
from jaxsgl.grammar.mask_store import KEY_BYTES, MaskStore
from jaxsgl.grammar.vocabulary import Vocabulary
from jaxsgl.interface import LarkGrammar
from tests.grammar.toy import mask_of, toy_vocabulary


def test_lru_keeps_what_was_used_last():
    cache = ByteLru(100)
    for name in "abc":
        cache.put(name, name.upper(), 30)
    assert cache.get("a") == "A"
    cache.put("d", "D", 40)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == ("A", None, "C")
    assert cache.num_bytes == 100
    cache.grow("a", 10)
    assert cache.get("d") is None
    cache.put("a", "A2", 5)
    assert cache.num_bytes == 35
    cache.put("huge", "H", 101)
    assert cache.get("huge") is None
    cache.grow("nobody", 50)
    assert cache.num_bytes == 35


def test_equal_masks_are_kept_once():
    store = MaskStore(10 * KEY_BYTES + 2 * 40)
    ones, others = np.ones(10, np.uint32), np.zeros(10, np.uint32)
    kept = store.put("a", ones)
    assert store.put("b", ones.copy()) is kept
    assert store.get("b") is kept
    assert len(store) == 1
    assert store.num_bytes == 2 * KEY_BYTES + 40
    store.put("c", others)
    store.get("a")
    for index in range(20):
        store.put(index, np.full(10, index + 2, np.uint32))
    assert store.num_bytes <= store.max_bytes
    assert store.num_keys <= 10
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 5


def test_masks_in_use_outlive_others():
    store = MaskStore(10 * (KEY_BYTES + 40))
    store.put("used", np.full(10, 1000, np.uint32))
    for index in range(100):
        store.put(index, np.full(10, index, np.uint32))
        assert store.get("used") is not None
    assert store.get(0) is None and store.get(99) is not None
    for index in range(100, 130):
        store.put(index, np.full(10, index, np.uint32))
    assert store.get("used") is None


def test_many_grammars_stay_within_the_budget():
    memory = GrammarMemory(toy_vocabulary(), 200_000)
    for number in range(150):
        text = f'start: "k{number}" "{{" (/[a-z]+{number}/ ",")* "}}"'
        grammar = TableGrammar(compile_tables(LarkGrammar(text)), memory, DEFAULT_LIMITS)
        matcher = grammar.matcher()
        for byte in f"k{number}{{ab".encode():
            mask_of(matcher)
            assert matcher.advance(byte + 1)
        assert memory.num_bytes <= 200_000


def test_vocabulary_paths_and_spelling():
    vocabulary = toy_vocabulary()
    for node in range(1, vocabulary.num_nodes):
        token = int(vocabulary.tokens[node])
        if token >= 0:
            assert vocabulary.token_bytes[token] == vocabulary.path(node)
        first = int(vocabulary.first_children[node])
        children = range(first, first + int(vocabulary.num_children[node]))
        assert all(vocabulary.parents[child] == node for child in children)
    assert int((vocabulary.tokens >= 0).sum()) == len({*vocabulary.token_bytes} - {b""})
    text = 'if (foo( "日本" == true, null'.encode()
    tokens = vocabulary.spell(text)
    assert b"".join(vocabulary.token_bytes[token] for token in tokens) == text
    assert len(tokens) < len(text) / 1.5


def test_vocabulary_edge_cases():
    assert Vocabulary([b""], (), 5).num_nodes == 1
    with pytest.raises(ValueError, match="do not fit"):
        Vocabulary([b"a", b"b"], (0,), 1)
    spelled_like_the_end = Vocabulary([b"a", b"a", b"b"], (0,), 3)
    assert spelled_like_the_end.same_bytes == {}
    assert spelled_like_the_end.tokens_in(spelled_like_the_end.ends).tolist() == [0]
