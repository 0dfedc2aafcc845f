"""Builds a tokenizer from the files of a HuggingFace folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer as Backend

from jaxsgl.tokenizer.chat_template import ChatTemplate
from jaxsgl.tokenizer.errors import TokenizerError, one_line
from jaxsgl.tokenizer.token_bytes import byte_level_bytes, sentencepiece_bytes
from jaxsgl.tokenizer.tokenizer import Tokenizer

MAX_FILE_BYTES = 256 * 2**20
"""Of any one file; the largest known tokenizer.json has 33 MB."""


def tokenizer_from_folder(folder: Path, chat_template: str | None) -> Tokenizer:
    """Return the tokenizer of tokenizer.json, with its special tokens and its chat template.

    `chat_template` replaces the folder's own. Raises TokenizerError, which names the file.
    """
    path = folder / "tokenizer.json"
    raw = _read(path)
    if raw is None:
        raise TokenizerError(f"{path}: is missing")
    backend = _parse(raw, path)
    description = _decode_object(raw, path)
    steps = set(_types(description.get("decoder")))
    if "ByteLevel" in steps:
        token_bytes = byte_level_bytes(backend.get_vocab())
    elif steps & {"ByteFallback", "Metaspace"}:
        token_bytes = sentencepiece_bytes(backend.get_vocab())
    else:
        raise TokenizerError(f"{path}: its decoder is neither byte-level nor SentencePiece's")

    settings = _read_object(folder / "tokenizer_config.json")
    configs = [_read_object(folder / name) for name in ("generation_config.json", "config.json")]
    texts = dict(_special_texts(settings))
    source = _chat_template(folder, settings) if chat_template is None else chat_template
    return Tokenizer(
        backend,
        token_bytes=token_bytes,
        eos_token_ids=_eos_token_ids(backend, texts, *configs),
        bos_token_id=backend.token_to_id(texts["bos_token"]) if "bos_token" in texts else None,
        chat_template=None if source is None else ChatTemplate(source, texts),
        continuing_backend=_continuing_backend(description, path),
    )


def _parse(raw: bytes, path: Path) -> Backend:
    try:
        return Backend.from_str(raw.decode())
    except Exception as error:  # The library raises nothing more specific.
        raise TokenizerError(f"{path}: is unusable: {one_line(error)}") from None


def _continuing_backend(description: dict[str, Any], path: Path) -> Backend | None:
    """Return a tokenizer for text in the middle of a prompt, if the start of one is special.

    SentencePiece puts a space before the first word of a prompt; in the scheme "first", not before
    words that follow a control token.
    """
    pre_tokenizer = description.get("pre_tokenizer")
    found = False
    for step in _steps(pre_tokenizer):
        if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
            found = True
    return _parse(msgspec.json.encode(description), path) if found else None


def _steps(component: Any) -> Iterator[dict[str, Any]]:
    """Yield a component of tokenizer.json, or what it is a sequence of."""
    if isinstance(component, dict):
        yield component
        for key in ("pretokenizers", "decoders"):
            for step in component.get(key, ()):
                yield from _steps(step)


def _types(component: Any) -> Iterator[str]:
    return (step.get("type", "") for step in _steps(component))


def _special_texts(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = settings.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            yield name, token


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    raw = _read(path)
    if raw is not None:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise TokenizerError(f"{path}: is not UTF-8") from None
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry for entry in template if isinstance(entry, dict)}
        template = named.get("default", {}).get("template")
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"{folder / 'tokenizer_config.json'}: chat_template is not a string")
    return template


def _eos_token_ids(
    backend: Backend, texts: dict[str, str], *configs: dict[str, Any]
) -> tuple[int, ...]:
    """Return the ends that any of the folder's files names; the tokenizer's own comes first."""
    found = [backend.token_to_id(texts["eos_token"])] if "eos_token" in texts else []
    for config in configs:
        ids = config.get("eos_token_id")
        found += ids if isinstance(ids, list) else [ids]
    known = [id_ for id_ in found if type(id_) is int and backend.id_to_token(id_) is not None]
    return tuple(dict.fromkeys(known))


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; an empty one if there is no such file."""
    raw = _read(path)
    return {} if raw is None else _decode_object(raw, path)


def _decode_object(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path}: is not a JSON object: {one_line(error)}") from None


def _read(path: Path) -> bytes | None:
    """Return the content of `path`; None if there is no such file."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerError(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from None
