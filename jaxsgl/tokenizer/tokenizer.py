"""Text and chat messages to token ids, token ids to text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

from jaxsgl.tokenizer.chat_template import ChatTemplate
from jaxsgl.tokenizer.control_tokens import ControlToken, ControlTokens
from jaxsgl.tokenizer.errors import TokenizerError
from jaxsgl.tokenizer.tool_prompt import tool_format, with_tools_in_messages

_RESERVED_VARIABLES = frozenset(
    (
        "messages",
        "add_generation_prompt",
        "bos_token",
        "eos_token",
        "raise_exception",
        "strftime_now",
    )
)
_COMMON_VARIABLES = frozenset(
    ("tools", "documents", "enable_thinking", "thinking", "reasoning_effort")
)
"""What clients set for any model: without effect where a template has no use for it."""


class Tokenizer:
    """The tokenizer of one model. All methods are safe from several threads."""

    eos_token_ids: tuple[int, ...]
    """Every token with which the model ends an answer; may be empty."""
    bos_token_id: int | None
    token_bytes: list[bytes]
    """[vocab_size]: what each token adds to the text; b"" for control tokens and unused ids."""
    special_token_texts: dict[int, str]
    """Control tokens: id -> how they are written."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        token_bytes: list[bytes],
        eos_token_ids: tuple[int, ...],
        bos_token_id: int | None,
        chat_template: ChatTemplate | None,
        continuing_backend: tokenizers.Tokenizer | None = None,
    ) -> None:
        """Take over `backend`, which must not be used elsewhere.

        `token_bytes` may hold anything for tokens that were added to the vocabulary.
        `continuing_backend` is for text that follows a control token, where that differs.
        """
        self.eos_token_ids = eos_token_ids
        self.bos_token_id = bos_token_id
        self.token_bytes = token_bytes
        self.special_token_texts = {}
        self._chat_template = chat_template
        self._backend = backend
        self._continuing_backend = continuing_backend or backend
        for each in (self._backend, self._continuing_backend):
            each.encode_special_tokens = True  # As ordinary characters, that is.
            each.no_truncation()
            each.no_padding()
        control: list[ControlToken] = []
        for id_, added in backend.get_added_tokens_decoder().items():
            token_bytes[id_] = b"" if added.special else added.content.encode()
            if added.special:
                self.special_token_texts[id_] = added.content
                control.append(ControlToken(added.content, id_, added.lstrip, added.rstrip))
        self._control_tokens = ControlTokens(control)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id. The model may have more rows than that, never fewer."""
        return len(self.token_bytes)

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a plain text.

        Control tokens written in it stay ordinary characters. `add_special_tokens` adds what the
        model wants around every prompt, such as a token that begins it. Where the vocabulary lacks
        a byte of a character, that byte is left out. Raises TokenizerError for lone surrogates.
        """
        _check_unicode(text)
        return _encoded(self._backend, [text], add_special_tokens=add_special_tokens)[0]

    @property
    def tool_format(self) -> str:
        """The form in which the chat template has the model write tool calls."""
        return tool_format("" if self._chat_template is None else self._chat_template.source)

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the ids of a conversation in the form of the model's chat template.

        Only what the template writes becomes control tokens; those in messages stay ordinary
        characters. Content given as a list of text parts is joined by newlines. `variables` are
        further variables of the template, `tools` among them, which a template that has no place
        for them gets in a system message. `continue_final_message` leaves out what the template
        writes behind the content of the last message. Raises TokenizerError if there is no template
        or it does not take the messages or a variable.
        """
        pieces = self.chat_pieces(
            messages,
            add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        texts = [piece for piece in pieces if isinstance(piece, str)]
        num_first = 1 if pieces and isinstance(pieces[0], str) else 0
        first, others = texts[:num_first], texts[num_first:]
        encoded = iter(_encoded(self._backend, first) + _encoded(self._continuing_backend, others))
        ids: list[int] = []
        for piece in pieces:
            ids += [piece] if isinstance(piece, int) else next(encoded)
        return ids

    def chat_pieces(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[str | int]:
        """What `encode_chat` encodes: ids of control tokens, and the texts between them.

        Raises as `encode_chat` does.
        """
        if self._chat_template is None:
            raise TokenizerError("the model has no chat template; send a plain prompt")
        messages = [_with_plain_content(message) for message in messages]
        given = dict(variables or {})
        _check_variables(given, self._chat_template.variables)
        if given.get("tools") and "tools" not in self._chat_template.variables:
            messages = with_tools_in_messages(messages, given.pop("tools"))
        try:
            guarded = self._control_tokens.guard([messages, given], self._chat_template.source)
        except RecursionError:
            raise TokenizerError("messages are nested too deeply") from None
        messages, given = guarded.messages
        rendered = self._chat_template.render(messages, add_generation_prompt, given)
        if continue_final_message:
            rendered = _up_to_content(rendered, messages[-1])
        _check_unicode(rendered)
        return [
            piece if isinstance(piece, int) else guarded.restored(piece)
            for piece in self._control_tokens.split(rendered)
        ]

    def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of a text that follows other tokens. Raises as `encode` does."""
        _check_unicode(text)
        return _encoded(self._continuing_backend, [text])[0]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of `ids`; U+FFFD stands for bytes that are not UTF-8.

        `skip_special=False` writes control tokens out. Raises TokenizerError for unknown ids.
        """
        pieces: list[bytes] = []
        for id_ in ids:
            if not 0 <= id_ < self.vocab_size:
                raise TokenizerError(f"token id {id_} is not between 0 and {self.vocab_size - 1}")
            special = None if skip_special else self.special_token_texts.get(id_)
            pieces.append(self.token_bytes[id_] if special is None else special.encode())
        return b"".join(pieces).decode(errors="replace")


def _encoded(
    backend: tokenizers.Tokenizer, texts: list[str], *, add_special_tokens: bool = False
) -> list[list[int]]:
    """The ids of each text. Unlike `encode`, this gives up the interpreter's lock meanwhile, and
    leaves out where each token lies in the text: half the time."""
    batch = backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
    return [encoding.ids for encoding in batch]


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(f"text has a lone surrogate at character {error.start}") from None


def _check_variables(given: Mapping[str, Any], known: frozenset[str]) -> None:
    for name in given:
        if name in _RESERVED_VARIABLES or (name not in known and name not in _COMMON_VARIABLES):
            free = ", ".join(sorted(known - _RESERVED_VARIABLES)) or "none"
            raise TokenizerError(
                f"the chat template has no variable {name!r} to set; it has: {free}"
            )


def _up_to_content(rendered: str, message: dict[str, Any]) -> str:
    """A rendered prompt without what follows the content of its last message."""
    content: str = message.get("content") or ""
    core = content.strip()
    # `rfind` would compare the two at every place if it is not found.
    behind = rendered[::-1].find(core[::-1])
    if not core or behind < 0:
        raise TokenizerError("there is no content of a last message to continue")
    end = len(rendered) - behind
    trailing = content[len(content.rstrip()) :]
    # Many templates trim; where they do not, the white space belongs to what is continued.
    return rendered[: end + (len(trailing) if rendered.startswith(trailing, end) else 0)]


def _with_plain_content(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise TokenizerError("message content has a part that is not text")
        texts.append(part["text"])
    return {**message, "content": "\n".join(texts)}
