"""Tokens by how they begin and by what they contain."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from jaxsgl.grammar.vocabulary import Vocabulary

type Ids = NDArray[np.int32]


class TokenIndex:
    """Of one vocabulary; immutable."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        texts = vocabulary.token_bytes
        order = sorted((id_ for id_, text in enumerate(texts) if text), key=texts.__getitem__)
        self._texts = [texts[id_] for id_ in order]
        self._ids = np.array(order, dtype=np.int32)

    def beginning_with(self, text: bytes) -> Ids:
        first = bisect_left(self._texts, text)
        # No text of UTF-8 or of a byte token has 0xff twice after a common beginning.
        last = bisect_left(self._texts, text + b"\xff\xff", lo=first)
        return self._ids[first:last]

    def containing(self, text: bytes) -> Ids:
        found = [index for index, each in enumerate(self._texts) if text in each]
        return self._ids[np.array(found, dtype=np.int64)]
