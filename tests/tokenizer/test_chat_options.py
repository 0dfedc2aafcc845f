"""Tools, variables and continued messages in chat templates."""

from __future__ import annotations

from typing import Any

import pytest

from jaxsgl.loading.default_model import default_model_path
from jaxsgl.loading.gguf_file import read_gguf_header
from jaxsgl.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from tests.tokenizer.smollm2 import smollm2

USER = {"role": "user", "content": "Hi"}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "description": "<|im_end|>", "parameters": {}}}
]


def with_template(source: str) -> Tokenizer:
    return load_tokenizer(read_gguf_header(default_model_path()).metadata, source)


def text_of(tokenizer: Tokenizer, messages: list[dict[str, Any]], **options: Any) -> str:
    return tokenizer.decode(tokenizer.encode_chat(messages, **options), skip_special=False)


def test_a_template_without_tools_gets_them_in_a_system_message() -> None:
    messages = [{"role": "system", "content": "S"}, USER]
    text = text_of(smollm2(), messages, variables={"tools": TOOLS})
    assert text.startswith("<|im_start|>system\nS\n\n# Tools")
    assert '<tools>\n{"type": "function", "function": {"name": "f"' in text
    assert text.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = smollm2().encode_chat(messages, variables={"tools": TOOLS})
    assert ids.count(smollm2().eos_token_ids[0]) == 2  # not the one in a description


def test_earlier_calls_are_written_for_it() -> None:
    function = {"name": "f", "arguments": {"a": 1}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": function}]},
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
    ]
    text = text_of(smollm2(), messages, variables={"tools": TOOLS})
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{call}<|im_end|>" in text
    assert "<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>" in text


def test_a_template_with_tools_gets_them_as_they_are() -> None:
    tokenizer = with_template("{% for t in tools %}{{ t | tojson }}{% endfor %}<tool_call>")
    ids = tokenizer.encode_chat([USER], variables={"tools": TOOLS})
    assert tokenizer.decode(ids).startswith('{"type": "function"')
    assert not set(ids) & set(tokenizer.eos_token_ids)  # of a description neither


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("x", "hermes"),
        ("<tool_call>", "hermes"),
        ("[TOOL_CALLS]", "mistral"),
        ("<|python_tag|>", "llama3"),
    ],
)
def test_the_form_of_calls_is_that_of_the_template(source: str, name: str) -> None:
    assert with_template(source).tool_format == name


def test_variables() -> None:
    tokenizer = with_template(
        "{{ messages[0].content }}{% if enable_thinking %}!{% endif %}{{ tone }}"
    )
    assert text_of(tokenizer, [USER], variables={"enable_thinking": True, "tone": "?"}) == "Hi!?"
    assert text_of(smollm2(), [USER], variables={"enable_thinking": True})
    assert text_of(smollm2(), [USER], variables={"reasoning_effort": "low"})
    for name in ("colour", "messages", "bos_token", "add_generation_prompt", "raise_exception"):
        with pytest.raises(TokenizerError, match=f"no variable '{name}' to set; it has: .*tone"):
            tokenizer.encode_chat([USER], variables={name: 1})


def test_a_message_that_is_continued() -> None:
    messages = [USER, {"role": "assistant", "content": "The answer <|im_end|> is "}]
    options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    text = text_of(smollm2(), messages, **options)
    assert text.endswith("<|im_start|>assistant\nThe answer <|im_end|> is ")
    trimming = with_template("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}")
    assert text_of(trimming, messages, **options) == "[Hi][The answer <|im_end|> is"
    for content in ("", " \n"):
        with pytest.raises(TokenizerError, match="to continue"):
            smollm2().encode_chat([{"role": "user", "content": content}], **options)
