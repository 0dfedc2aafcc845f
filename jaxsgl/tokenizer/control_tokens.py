"""Keeps control tokens that a chat template writes apart from the same characters in a message."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxsgl.tokenizer.errors import TokenizerError

_STAND_INS = range(0xF0000, 0xFFFFE)
"""A plane of private use: 65,534 characters without a meaning of their own."""
_SPACES = re.compile(r"\s*")


class ControlToken(NamedTuple):
    text: str
    id: int
    strips_left: bool = False
    """Whether white space before the token belongs to it."""
    strips_right: bool = False


class GuardedMessages(NamedTuple):
    messages: Any
    originals: dict[str, str]
    """What each stand-in stands for."""

    def restored(self, text: str) -> str:
        """A guarded text as it was."""
        for stand_in, original in self.originals.items():
            text = text.replace(stand_in, original)
        return text


class ControlTokens:
    """The control tokens of a vocabulary.

    A template sees messages in which no control token can be found, because the first character of
    each is replaced by a stand-in: a character that occurs neither in the messages nor in the
    template, so nobody can have written it. What is found in the rendered text was therefore
    written by the template. Lengths do not change, and neither does any other text, so templates
    that trim, search and cut messages work as ever.

    The start of a control token at the end of a text is replaced as well, lest what follows
    complete it. Not covered: a template that deletes characters from within a message.
    """

    def __init__(self, tokens: list[ControlToken]) -> None:
        self._tokens = {token.text: token for token in tokens}
        pattern = _longest_of(set(self._tokens))
        self._found = re.compile(pattern)
        self._first_characters = re.compile(f"(?={pattern}).", re.DOTALL)
        self._starts = {
            token.text[:length] for token in tokens for length in range(1, len(token.text))
        }
        self._longest_start = max(map(len, self._starts), default=0)

    def guard(self, messages: Any, template: str) -> GuardedMessages:
        """Return messages in which no text contains a control token or ends with the start of one.

        Raises TokenizerError if the messages leave no character for a stand-in.
        """
        if not self._tokens:
            return GuardedMessages(messages, {})
        used = set(template)
        _collect_characters(messages, used)
        unused = (code for code in _STAND_INS if chr(code) not in used)
        first_characters = sorted({text[0] for text in self._tokens})
        originals = dict(zip(map(chr, unused), first_characters, strict=False))
        if len(originals) < len(first_characters):
            raise TokenizerError("messages use every character of a plane of private use")
        stand_ins = {character: stand_in for stand_in, character in originals.items()}
        return GuardedMessages(self._guard(messages, stand_ins), originals)

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the pieces of a text: ids of control tokens, and the non-empty texts between."""
        end = 0
        if self._tokens:
            while match := self._found.search(text, end):
                token = self._tokens[match[0]]
                before = text[end : match.start()]
                if token.strips_left:
                    before = before.rstrip()
                if before:
                    yield before
                yield token.id
                end = match.end()
                if token.strips_right:
                    end = next(_SPACES.finditer(text, end)).end()
        if end < len(text):
            yield text[end:]

    def _guard(self, value: Any, stand_ins: Mapping[str, str]) -> Any:
        if isinstance(value, str):
            return self._guard_end(self._guard_whole(value, stand_ins), stand_ins)
        if isinstance(value, list):
            return [self._guard(item, stand_ins) for item in value]
        if not isinstance(value, dict):
            return value
        # Templates look keys up and compare roles: those change only if they hold a whole token.
        return {
            self._guard_whole(key, stand_ins): self._guard_whole(item, stand_ins)
            if key == "role" and isinstance(item, str)
            else self._guard(item, stand_ins)
            for key, item in value.items()
        }

    def _guard_whole(self, text: str, stand_ins: Mapping[str, str]) -> str:
        return self._first_characters.sub(lambda match: stand_ins[match[0]], text)

    def _guard_end(self, text: str, stand_ins: Mapping[str, str]) -> str:
        # Templates often trim, so the end that counts may come before white space.
        end = len(text.rstrip())
        for length in range(1, min(end, self._longest_start) + 1):
            start = end - length
            if text[start:end] in self._starts:
                text = text[:start] + stand_ins[text[start]] + text[start + 1 :]
        return text


def _longest_of(texts: set[str]) -> str:
    """A pattern for the longest of the texts that is there. What several begin with is in it once:
    hundreds of tokens would otherwise be tried one by one wherever one of them might begin."""
    by_first: dict[str, set[str]] = {}
    for text in texts - {""}:
        by_first.setdefault(text[0], set()).add(text[1:])
    branches = [
        re.escape(first) + ("" if rests == {""} else _longest_of(rests))
        for first, rests in sorted(by_first.items())
    ]
    if "" in texts:
        return f"(?:{'|'.join(branches)})?" if branches else ""
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _collect_characters(value: Any, found: set[str]) -> None:
    if isinstance(value, str):
        found.update(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            _collect_characters(key, found)
            _collect_characters(item, found)
    elif isinstance(value, list):
        for item in value:
            _collect_characters(item, found)
