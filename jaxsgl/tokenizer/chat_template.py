"""Renders the chat template of a model: a Jinja program of foreign origin, run in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.meta
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxsgl.tokenizer.errors import TokenizerError, one_line

MAX_SOURCE_LEN = 2**20
MAX_RENDERED_LEN = 2**24
"""Characters; bounds what a template can make of a message."""


class ChatTemplate:
    """A compiled template. Rendering is safe from several threads.

    The template can call what HuggingFace's templates may: `raise_exception`, `strftime_now` and
    the filter `tojson`. It reaches nothing else of this program, and cannot build texts beyond
    MAX_RENDERED_LEN by printing or repeating.
    """

    def __init__(
        self,
        source: str,
        special_texts: Mapping[str, str],
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`special_texts` are further variables, for example bos_token. Raises TokenizerError."""
        if len(source) > MAX_SOURCE_LEN:
            raise TokenizerError(f"chat template is longer than {MAX_SOURCE_LEN} characters")
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda format: clock().strftime(format)
        self.source = source
        self.variables: frozenset[str] = frozenset()
        """What the template reads and does not set itself."""
        self._special_texts = dict(special_texts)
        try:
            self._template = environment.from_string(source)
            parsed = environment.parse(source)
            self.variables = frozenset(jinja2.meta.find_undeclared_variables(parsed))
        except Exception as error:
            raise TokenizerError(f"chat template does not compile: {one_line(error)}") from None

    def render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt. Raises TokenizerError for messages that the template does not take."""
        given = {"tools": None, "documents": None, **(variables or {}), **self._special_texts}
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(
                given, messages=messages, add_generation_prompt=add_generation_prompt
            ):
                length += len(piece)
                if length > MAX_RENDERED_LEN:
                    raise SecurityError(f"prompt exceeds {MAX_RENDERED_LEN} characters")
                pieces.append(piece)
        except Exception as error:  # The template's own errors can be of any type.
            raise TokenizerError(f"chat template refused: {one_line(error)}") from None
        return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    """Refuses the operators with which a short template makes a huge value."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("powers are not available")
        for repeated, times in ((left, right), (right, left)):
            if isinstance(repeated, str | list | tuple) and isinstance(times, int):
                if len(repeated) * times > MAX_RENDERED_LEN:
                    raise SecurityError("repetition is too long")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, writes characters of HTML as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
