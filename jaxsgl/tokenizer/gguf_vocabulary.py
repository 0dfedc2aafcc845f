"""Builds a tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from jaxsgl.tokenizer.chat_template import ChatTemplate
from jaxsgl.tokenizer.errors import TokenizerError, one_line
from jaxsgl.tokenizer.sentencepiece_vocabulary import sentencepiece_backend
from jaxsgl.tokenizer.token_bytes import byte_level_bytes, sentencepiece_bytes
from jaxsgl.tokenizer.tokenizer import Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_NAMED_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
"""What templates call a token -> the key of its id."""
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_END_TEXTS = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
    }
)
"""Control tokens that end an answer, named by the file or not: it names one, models use several."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen 2 cut text into words, but for the number of digits in one."""
_KNOWN_CUTS = ("gpt-2", "smollm", "starcoder", "llama-bpe", "qwen2")


def tokenizer_from_gguf(metadata: Mapping[str, Any], chat_template: str | None) -> Tokenizer:
    """Return the tokenizer that the file describes; `chat_template` replaces the file's own.

    Raises TokenizerError, which names the key that is missing or unusable.
    """
    fields = _Fields(metadata)
    tokens = fields.texts("tokens")
    ids = {name: fields.token_id(key, len(tokens)) for name, key in _NAMED_TOKENS.items()}
    texts = {name: tokens[id_] for name, id_ in ids.items() if id_ is not None}
    model = fields.text("model")
    continuing_backend = None
    if model == "gpt2":
        backend, to_bytes = _byte_level_bpe(fields, tokens), byte_level_bytes
    elif model == "llama":
        space_prefix = fields.flag("add_space_prefix", default=True)
        backend, to_bytes = _sentencepiece(fields, tokens, space_prefix), sentencepiece_bytes
        if space_prefix:
            # Not before text that follows a control token.
            continuing_backend = _sentencepiece(fields, tokens, space_prefix=False)
    else:
        raise TokenizerError(f"tokenizer.ggml.model is {model[:100]!a}; known: gpt2, llama")
    if fields.flag("add_bos_token", default=model == "llama") and ids["bos_token"] is not None:
        # Under a name of its own: as a piece of a template, the token's text could mean anything.
        backend.post_processor = processors.TemplateProcessing(
            single=["BOS", "$A"], special_tokens=[("BOS", ids["bos_token"])]
        )
    ends = [fields.token_id(key, len(tokens)) for key in _END_KEYS]
    added = backend.get_added_tokens_decoder()
    ends += [id_ for id_, token in added.items() if token.special and token.content in _END_TEXTS]
    source = chat_template if chat_template is not None else fields.chat_template()
    return Tokenizer(
        backend,
        token_bytes=to_bytes(backend.get_vocab()),
        eos_token_ids=tuple(dict.fromkeys(id_ for id_ in ends if id_ is not None)),
        bos_token_id=ids["bos_token"],
        chat_template=None if source is None else ChatTemplate(source, texts),
        continuing_backend=continuing_backend,
    )


def _sentencepiece(fields: _Fields, tokens: list[str], space_prefix: bool) -> Backend:
    scores, kinds = fields.scores(len(tokens)), fields.token_kinds(len(tokens))
    return sentencepiece_backend(tokens, scores, kinds, space_prefix=space_prefix)


def _byte_level_bpe(fields: _Fields, tokens: list[str]) -> Backend:
    cut = fields.text("pre")
    kinds = fields.token_kinds(len(tokens))
    ids = {token: id_ for id_, token in enumerate(tokens)}
    if len(ids) != len(tokens) or "" in ids:
        raise TokenizerError("tokenizer.ggml.tokens has a token twice, or an empty one")
    merges: Any = [tuple(merge.split(" ", 1)) for merge in fields.texts("merges")]
    try:
        backend = Backend(models.BPE(ids, merges, ignore_merges=cut == "llama-bpe"))
    except Exception as error:  # The library raises nothing more specific.
        raise TokenizerError(f"tokenizer.ggml.merges is unusable: {one_line(error)}") from None
    if cut == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(cut)
    backend.decoder = decoders.ByteLevel()
    added = {kind: [] for kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)}
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in added:
            added[kind].append(AddedToken(token, normalized=False))
    backend.add_special_tokens(added[_UNKNOWN] + added[_CONTROL])
    backend.add_tokens(added[_USER_DEFINED])
    return backend


def _pre_tokenizer(cut: str) -> pre_tokenizers.PreTokenizer:
    """Return what cuts text before pairs are merged, as the family's own tokenizer.json does."""
    byte_level = pre_tokenizers.ByteLevel
    match cut:
        case "gpt-2":
            return byte_level(add_prefix_space=False)
        case "smollm" | "starcoder":
            digits = pre_tokenizers.Digits(individual_digits=True)
            return pre_tokenizers.Sequence([digits, byte_level(add_prefix_space=False)])
        case "llama-bpe" | "qwen2":
            words = Regex(_WORDS % ("{1,3}" if cut == "llama-bpe" else ""))
            return pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(words, "isolated"),
                    byte_level(add_prefix_space=False, use_regex=False),
                ]
            )
    known = ", ".join(_KNOWN_CUTS)
    raise TokenizerError(f"tokenizer.ggml.pre is {cut[:100]!a}, which is unknown; known: {known}")


class _Fields:
    """The metadata under `tokenizer.ggml.`, with types checked."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def text(self, key: str) -> str:
        return self._required(key, str, "a string")

    def texts(self, key: str) -> list[str]:
        return self._required(key, list, "an array of strings")

    def token_kinds(self, num_tokens: int) -> list[int]:
        kinds = self._required("token_type", np.ndarray, "an array of integers")
        if kinds.shape != (num_tokens,):
            raise TokenizerError(
                f"tokenizer.ggml.token_type has {len(kinds)} entries for {num_tokens} tokens"
            )
        return kinds.tolist()

    def scores(self, num_tokens: int) -> list[float]:
        scores = self._required("scores", np.ndarray, "an array of numbers")
        if scores.shape != (num_tokens,):
            raise TokenizerError(
                f"tokenizer.ggml.scores has {len(scores)} entries for {num_tokens} tokens"
            )
        if not np.isfinite(scores).all():
            raise TokenizerError("tokenizer.ggml.scores has a value that is not finite")
        return scores.tolist()

    def token_id(self, key: str, num_tokens: int) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < num_tokens:
            raise TokenizerError(f"tokenizer.ggml.{key} is no id of the {num_tokens} tokens")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        return value if isinstance(value, bool) else default

    def chat_template(self) -> str | None:
        source = self._metadata.get("tokenizer.chat_template")
        if source is not None and not isinstance(source, str):
            raise TokenizerError("tokenizer.chat_template is not a string")
        return source

    def _required[T](self, key: str, kind: type[T], meaning: str) -> T:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, kind):
            problem = "is missing" if value is None else f"is not {meaning}"
            raise TokenizerError(f"tokenizer.ggml.{key} {problem}")
        return value
