"""What to ask: conversations made from a seed, or read from a file. Nothing is downloaded."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.prefix_cache import make_text
from bench.prompts import random_prompts

Message = dict[str, str]
Prompt = str | list[int] | list[Message]
CHARS_PER_TOKEN = 4
"""A rough mean, for the length of answers that a file gives as text."""


@dataclass(frozen=True)
class Turn:
    prompt: Prompt
    """What it adds to the conversation so far: text, token ids, or chat messages."""
    output_len: int
    schema: dict[str, Any] | None = None
    """The JSON Schema that its answer has to follow."""


Conversation = tuple[Turn, ...]
"""Turns that are sent one after the other, each with all that was said before it."""


class Ids:
    """Prompts of random token ids: exact lengths, and no tokenizer in between."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def draw(self, rng: random.Random, length: int) -> list[int]:
        return random_prompts(rng, 1, length, self._vocab_size)[0]

    def join(self, *parts: list[int]) -> list[int]:
        return [token_id for part in parts for token_id in part]


class Words:
    """Prompts of common words, of about one token each."""

    def draw(self, rng: random.Random, length: int) -> str:
        return make_text(rng, length)

    def join(self, *parts: str) -> str:
        return " ".join(part for part in parts if part)


def make_conversations(
    args: argparse.Namespace, seed: int | str, *, chat: bool
) -> list[Conversation]:
    """As many conversations as have `args.num_prompts` turns; the last one may be cut short.

    The same settings and seed give the same prompts. Raises ValueError or OSError for a file that
    cannot be used.
    """
    conversations: list[Conversation] = []
    missing = args.num_prompts
    for conversation in _DATASETS[args.dataset](args, random.Random(seed), chat):
        conversations.append(conversation[:missing])
        missing -= len(conversations[-1])
        if missing == 0:
            break
    return conversations


def _material(args: argparse.Namespace, chat: bool) -> Any:
    return Words() if chat or args.prompt_form == "text" else Ids(args.vocab_size)


def _len(rng: random.Random, full: int, ratio: float) -> int:
    """Uniform from `ratio` of the full length up to it."""
    return rng.randint(max(1, round(full * ratio)), full)


def _random(args: argparse.Namespace, rng: random.Random, chat: bool) -> Iterator[Conversation]:
    material = _material(args, chat)
    while True:
        prompt = material.draw(rng, _len(rng, args.input_len, args.range_ratio))
        yield (Turn(prompt, _len(rng, args.output_len, args.range_ratio)),)


def _shared_prefix(
    args: argparse.Namespace, rng: random.Random, chat: bool
) -> Iterator[Conversation]:
    """Each prompt begins with one of `num_prefixes`, all of them equally often."""
    material = _material(args, chat)
    prefixes = [material.draw(rng, args.prefix_len) for _ in range(args.num_prefixes)]
    while True:
        for prefix in rng.sample(prefixes, len(prefixes)):
            rest = material.draw(rng, args.input_len - args.prefix_len)
            yield (Turn(material.join(prefix, rest), args.output_len),)


def _tree(args: argparse.Namespace, rng: random.Random, chat: bool) -> Iterator[Conversation]:
    """Each prompt walks down a tree of `tree_depth` levels, `tree_width` branches at each, then
    goes on alone. The way down has `prefix_len` tokens."""
    material = _material(args, chat)
    tree = rng.random()
    while True:
        path: list[int] = []
        parts: list[Any] = []
        for level in range(args.tree_depth):
            path.append(rng.randrange(args.tree_width))
            begin = args.prefix_len * level // args.tree_depth
            end = args.prefix_len * (level + 1) // args.tree_depth
            parts.append(material.draw(random.Random(f"{tree} {path}"), end - begin))
        parts.append(material.draw(rng, args.input_len - args.prefix_len))
        yield (Turn(material.join(*parts), args.output_len),)


def _multi_turn(args: argparse.Namespace, rng: random.Random, chat: bool) -> Iterator[Conversation]:
    """Chats of `turns` questions of `input_len` words behind one system prompt of `prefix_len`."""
    system = make_text(rng, args.prefix_len)
    while True:
        questions = [make_text(rng, args.input_len) + "?" for _ in range(args.turns)]
        first: Prompt = f"{system}\n{questions[0]}"
        if chat:
            first = [_message("system", system), _message("user", questions[0])]
        yield tuple(Turn(prompt, args.output_len) for prompt in (first, *questions[1:]))


_SUBJECTS = {
    "a city": {"name": "string", "country": "string", "population": "integer"},
    "a book": {"title": "string", "author": "string", "pages": "integer", "in_print": "boolean"},
    "a measurement": {"sensor": "string", "value": "number", "unit": "string"},
    "an order": {"customer": "string", "amount": "number", "paid": "boolean"},
}


def _json_schema(
    args: argparse.Namespace, rng: random.Random, chat: bool
) -> Iterator[Conversation]:
    while True:
        subject, members = rng.choice(list(_SUBJECTS.items()))
        properties: dict[str, Any] = {
            name: {"type": kind, "maxLength": 20} if kind == "string" else {"type": kind}
            for name, kind in members.items()
        }
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(members),
            "additionalProperties": False,
        }
        prompt = f"{make_text(rng, args.input_len)}\nDescribe {subject} as a JSON object."
        yield (Turn(prompt, args.output_len, schema),)


def _file(args: argparse.Namespace, rng: random.Random, chat: bool) -> Iterator[Conversation]:
    """In the order of the file, from its beginning again when it is too short."""
    conversations = read_conversations(Path(args.dataset_path), args.output_len)
    while True:
        yield from conversations


def read_conversations(path: Path, output_len: int) -> list[Conversation]:
    """One conversation for each entry of a JSON list or each line of a JSONL file.

    An entry has `prompt` (text or token ids) or `messages`, and maybe `output_len`; or it is in
    ShareGPT's format, where its first question is asked and the answer given there sets the length
    of ours, at about CHARS_PER_TOKEN. Entries without a question are left out. ValueError for
    anything else.
    """
    text = path.read_text()
    entries = json.loads(text) if text.lstrip().startswith("[") else map(json.loads, _lines(text))
    try:
        read = [_entry(entry, output_len) for entry in entries]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a prompt: {type(error).__name__}: {error}") from error
    found = [(turn,) for turn in read if turn is not None]
    if not found:
        raise ValueError(f"{path}: no prompts")
    return found


def _lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.strip())


def _entry(entry: dict[str, Any], output_len: int) -> Turn | None:
    if "conversations" not in entry:
        prompt = entry["messages"] if "messages" in entry else entry["prompt"]
        return Turn(prompt, entry.get("output_len", output_len), entry.get("schema"))
    said = entry["conversations"]
    if len(said) < 2 or said[0]["from"] not in ("human", "user"):
        return None
    return Turn(said[0]["value"], max(1, len(said[1]["value"]) // CHARS_PER_TOKEN))


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


_DATASETS: dict[
    str, Callable[[argparse.Namespace, random.Random, bool], Iterator[Conversation]]
] = {
    "random": _random,
    "shared-prefix": _shared_prefix,
    "multi-turn": _multi_turn,
    "tree": _tree,
    "json-schema": _json_schema,
    "file": _file,
}
DATASETS = tuple(_DATASETS)
