"""One grammar, used by several threads at once: masks are as ever."""

import random
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from jaxsgl.grammar.compiled import GrammarMemory, TableGrammar
from jaxsgl.grammar.compiler import compile_tables
from jaxsgl.grammar.limits import DEFAULT_LIMITS
from jaxsgl.interface import LarkGrammar
from tests.grammar.toy import EOS, SAMPLES, toy_vocabulary

NUM_THREADS = 4


@pytest.fixture(autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def walk(grammar: TableGrammar, seed: int) -> list[bytes]:
    """The masks along a random answer."""
    drawing, vocabulary = random.Random(seed), toy_vocabulary()
    matcher = grammar.matcher()
    row = np.zeros(vocabulary.row_len, np.uint32)
    masks: list[bytes] = []
    for _ in range(25):
        if not matcher.try_fill_mask(row):
            matcher.fill_mask(row)
        assert matcher.error is None
        masks.append(row.tobytes())
        token = drawing.choice(vocabulary.tokens_in(row).tolist())
        if token == EOS:
            break
        assert matcher.advance(token)
    return masks


@pytest.mark.parametrize("name", ["json", "sql", "python_expression"])
def test_masks_made_side_by_side(name: str):
    """All threads meet the same new states at the same time, in grammars that know none yet."""
    tables = compile_tables(LarkGrammar(SAMPLES[name]))
    alone = TableGrammar(tables, GrammarMemory(toy_vocabulary()), DEFAULT_LIMITS)
    start = threading.Barrier(NUM_THREADS)
    wrong: list[int] = []

    def run(grammar: TableGrammar, seed: int, expected: list[bytes]) -> None:
        start.wait()
        if walk(grammar, seed) != expected:
            wrong.append(seed)

    for seed in range(30):
        shared = TableGrammar(tables, GrammarMemory(toy_vocabulary()), DEFAULT_LIMITS)
        job = (shared, seed, walk(alone, seed))
        threads = [threading.Thread(target=run, args=job) for _ in range(NUM_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
