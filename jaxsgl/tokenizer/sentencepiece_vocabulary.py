"""SentencePiece's BPE from a vocabulary with scores, as GGUF files keep it (`llama`).

SentencePiece joins the two neighbours whose joint piece has the best score, the leftmost of equals.
A byte-pair encoder does the same if its merges are ranked by the score of what they make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from jaxsgl.tokenizer.errors import TokenizerError, one_line

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6
"""Kinds of tokens, by GGUF's numbers; 1 is ordinary."""
SPACE = "\u2581"


def sentencepiece_backend(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int], *, space_prefix: bool
) -> Backend:
    """An encoder; `space_prefix` puts a space before the text. Raises TokenizerError."""
    ids = {token: id_ for id_, token in enumerate(tokens)}
    if len(ids) != len(tokens) or "" in ids:
        raise TokenizerError("tokenizer.ggml.tokens has a token twice, or an empty one")
    unknown = next((tokens[id_] for id_, kind in enumerate(kinds) if kind == UNKNOWN), None)
    joinable = {
        token: score
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
        if kind not in (UNKNOWN, CONTROL, UNUSED, BYTE)
    }
    try:
        backend = Backend(
            models.BPE(ids, _merges(joinable), unk_token=unknown, fuse_unk=True, byte_fallback=True)
        )
    except Exception as error:  # The library raises nothing more specific.
        raise TokenizerError(f"tokenizer.ggml.tokens is unusable: {one_line(error)}") from None
    steps: list[Any] = [normalizers.Prepend(SPACE)] if space_prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    added: dict[int, list[AddedToken]] = {UNKNOWN: [], CONTROL: [], USER_DEFINED: []}
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in added:
            added[kind].append(AddedToken(token, normalized=False))
    backend.add_special_tokens(added[UNKNOWN] + added[CONTROL])
    backend.add_tokens(added[USER_DEFINED])
    return backend


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the best first."""
    found = [
        (-score, len(piece), piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    # Of equal scores the shorter piece first: it may be part of the longer one.
    found.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in found]
