"""The tokens of a model as a byte trie in flat arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

type Row = NDArray[np.uint32]
"""A token mask: bit i % 32 of word i // 32 says whether token i is allowed."""


class Vocabulary:
    """Tokens by their bytes. Immutable; made once per model.

    Nodes are numbered breadth first, so that the children of a node are contiguous; node 0 is the
    root. Control tokens and unused ids have no bytes and are in no mask, except the tokens that end
    an answer, which matchers allow where a text may end.

    Arrays indexed by node:
    `bytes_`: the last byte of the prefix. `parents`. `first_children`, `num_children`.
    `tokens`: a token that is spelled so, or -1.
    """

    def __init__(
        self, token_bytes: Sequence[bytes], eos_token_ids: Sequence[int], logits_len: int
    ) -> None:
        """`logits_len` is the width of the model's logits, at least the number of tokens."""
        if logits_len < len(token_bytes):
            raise ValueError(f"{len(token_bytes)} tokens do not fit logits of {logits_len}")
        self.token_bytes = token_bytes
        self.eos_token_ids = tuple(eos_token_ids)
        self.row_len = (logits_len + 31) // 32
        """Words of a mask."""
        self.ends = self.row_of(np.array(self.eos_token_ids, dtype=np.int32))
        """A mask of nothing but the tokens that end an answer."""
        self.nothing: Row = np.zeros(self.row_len, dtype=np.uint32)
        """A mask of no token."""
        self.everything = self.row_of(np.arange(logits_len, dtype=np.int32))
        """A mask of every token, control tokens and unused ids too."""
        order = sorted(
            (
                token
                for token, text in enumerate(token_bytes)
                if text and token not in eos_token_ids
            ),
            key=token_bytes.__getitem__,
        )
        self.same_bytes: dict[int, list[int]] = {}
        """Token -> other tokens that are spelled alike."""
        unique: list[int] = []
        for token in order:
            if unique and token_bytes[unique[-1]] == token_bytes[token]:
                self.same_bytes.setdefault(unique[-1], []).append(token)
            else:
                unique.append(token)
        self._build([token_bytes[token] for token in unique], np.array(unique, dtype=np.int32))

    @property
    def num_nodes(self) -> int:
        return len(self.bytes_)

    def row_of(self, tokens: NDArray[np.int32]) -> Row:
        """A mask that allows exactly `tokens`."""
        bits = np.zeros(self.row_len * 32, dtype=np.uint8)
        bits[tokens] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def tokens_in(self, row: Row) -> NDArray[np.intp]:
        """The tokens that a mask allows, ascending."""
        return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))

    def spell(self, text: bytes) -> list[int]:
        """Return tokens for `text`, always the longest that fits; bytes without one are left out.

        This is not how the model's tokenizer would cut the text."""
        tokens: list[int] = []
        at = 0
        while at < len(text):
            node, longest, end = 0, -1, at + 1
            for place in range(at, len(text)):
                first, count = int(self.first_children[node]), int(self.num_children[node])
                found = np.searchsorted(self.bytes_[first : first + count], text[place])
                if found == count or self.bytes_[first + found] != text[place]:
                    break
                node = first + int(found)
                if self.tokens[node] >= 0:
                    longest, end = int(self.tokens[node]), place + 1
            if longest >= 0:
                tokens.append(longest)
            at = end
        return tokens

    def path(self, node: int) -> bytes:
        """The prefix that a node stands for."""
        path = bytearray()
        while node:
            path.append(self.bytes_[node])
            node = int(self.parents[node])
        return bytes(reversed(path))

    def _build(self, texts: list[bytes], tokens: NDArray[np.int32]) -> None:
        """Lay out the trie of sorted, distinct `texts`, level by level."""
        lens = np.array([len(text) for text in texts], dtype=np.int32)
        width = int(lens.max(initial=0))
        table = np.zeros((len(texts), width), dtype=np.uint8)
        for index, text in enumerate(texts):
            table[index, : len(text)] = np.frombuffer(text, dtype=np.uint8)
        shared_len = _shared_prefix_lens(table, lens)
        levels: list[tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int32]]] = [
            (np.zeros(1, np.uint8), np.zeros(1, np.int32), np.full(1, -1, np.int32))
        ]
        node_of = np.zeros(len(texts), dtype=np.int32)  # Of each text's prefix at this level.
        num_nodes = 1
        for depth in range(width):
            inside = np.flatnonzero(lens > depth)
            # A text begins a node of its own unless it shares one more byte with the text before.
            starts = shared_len[inside] <= depth
            parents = node_of[inside[starts]]
            nodes = num_nodes + np.cumsum(starts, dtype=np.int32) - 1
            node_of[inside] = nodes
            level_tokens = np.full(len(parents), -1, dtype=np.int32)
            ends = lens[inside] == depth + 1
            level_tokens[nodes[ends] - num_nodes] = tokens[inside[ends]]
            levels.append((table[inside[starts], depth], parents, level_tokens))
            num_nodes += len(parents)
        self.bytes_ = np.concatenate([level[0] for level in levels])
        self.parents = np.concatenate([level[1] for level in levels])
        self.tokens = np.concatenate([level[2] for level in levels])
        children = np.bincount(self.parents[1:], minlength=num_nodes).astype(np.int32)
        self.num_children = children
        self.first_children = (np.cumsum(children) - children + 1).astype(np.int32)


def _shared_prefix_lens(table: NDArray[np.uint8], lens: NDArray[np.int32]) -> NDArray[np.int32]:
    """[text]: how many bytes it shares with the text before it (0 for the first)."""
    shared = np.zeros(len(lens), dtype=np.int32)
    if len(lens) > 1:
        differ = table[1:] != table[:-1]
        first: NDArray[np.intp] = differ.argmax(axis=1)
        first[~differ.any(axis=1)] = table.shape[1]
        shared[1:] = np.minimum(first, np.minimum(lens[1:], lens[:-1]))
    return shared
