"""What a chat template writes before and after the content of a turn."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from jaxsgl.interface import InvalidRequest
from jaxsgl.lang.expressions import Role
from jaxsgl.tokenizer import TokenizerError

type Pieces = tuple[str | int, ...]
"""Texts, and ids of control tokens."""

_CONTENT = "\ue0a7"
"""A character of private use, found again in what a template makes of it."""


class ChatTokenizer(Protocol):
    """What this needs of `tokenizer.Tokenizer`."""

    def chat_pieces(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> list[str | int]: ...


@dataclass(frozen=True, slots=True)
class TurnForm:
    before: Pieces
    after: Pieces

    @property
    def end_token_id(self) -> int | None:
        """The control token that ends the turn, if one does."""
        first = self.after[0] if self.after else None
        return first if isinstance(first, int) else None


class TurnForms:
    """Writes conversations turn by turn, with a template made to write them whole.

    A turn's form may depend on the roles of the turns before it, not on what they say.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._forms: dict[tuple[str, ...], TurnForm] = {}

    def form(self, roles_before: tuple[str, ...], role: Role) -> TurnForm:
        """Raises InvalidRequest if the template does not take such a turn there."""
        key = (*roles_before, role)
        if key not in self._forms:
            try:
                self._forms[key] = self._find(roles_before, role)
            except TokenizerError as error:
                order = ", ".join(key)
                raise InvalidRequest(f"turns of {order}: {error}", param="messages") from None
        return self._forms[key]

    def _find(self, roles_before: tuple[str, ...], role: Role) -> TurnForm:
        earlier = [{"role": each, "content": "x"} for each in roles_before]
        known = self._write(earlier) if earlier else []
        added = self._rest([*earlier, {"role": role, "content": _CONTENT}], known)
        if added.count(_CONTENT) != 1:
            raise TokenizerError(f"the chat template does not show a {role} turn once")
        at = added.index(_CONTENT)
        before, after = added[:at], added[at + 1 :]
        if role == "assistant" and earlier:
            before = self._rest(earlier, known, add_generation_prompt=True) or before
        return TurnForm(_joined(before), _joined(after))

    def _rest(
        self,
        messages: list[dict[str, Any]],
        known: list[str | int],
        add_generation_prompt: bool = False,
    ) -> list[str | int]:
        whole = self._write(messages, add_generation_prompt)
        if whole[: len(known)] != known:
            raise TokenizerError("the chat template writes turns differently when others follow")
        return whole[len(known) :]

    def _write(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool = False
    ) -> list[str | int]:
        """Characters and ids, one by one."""
        pieces = self._tokenizer.chat_pieces(messages, add_generation_prompt)
        atoms: list[str | int] = []
        for piece in pieces:
            atoms += piece if isinstance(piece, str) else [piece]
        return atoms


def _joined(atoms: list[str | int]) -> Pieces:
    pieces: list[str | int] = []
    for is_id, group in groupby(atoms, lambda atom: isinstance(atom, int)):
        members = list(group)
        pieces += members if is_id else ["".join(map(str, members))]
    return tuple(pieces)
