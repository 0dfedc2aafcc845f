"""The sandbox that chat templates run in."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from jaxsgl.tokenizer import TokenizerError
from jaxsgl.tokenizer.chat_template import MAX_SOURCE_LEN, ChatTemplate

MESSAGES = [{"role": "user", "content": "Hi"}]


def render(source: str, messages: list[dict[str, Any]] = MESSAGES, generate: bool = True) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"}, clock=lambda: datetime(2024, 7, 26))
    return template.render(messages, generate)


def test_what_templates_are_given() -> None:
    source = (
        "{{ bos_token }}{{ messages[0].content }}{{ add_generation_prompt }}{{ tools is none }}"
    )
    assert render(source) == "<s>HiTrueTrue"
    assert render("{{ eos_token }}x") == "x"


def test_blocks_leave_no_lines_behind() -> None:
    source = "a\n  {% for m in messages %}\n  {{ m.role }}\n  {% endfor %}\nb"
    assert render(source) == "a\n  user\nb"


def test_functions_of_huggingface() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"
    assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "Hi"}]'
    quoted = [{"content": "é<'>"}]
    assert render("{{ messages[0] | tojson(indent=1) }}", quoted) == '{\n "content": "é<\'>"\n}'
    assert render("{% for m in [1, 2] %}{{ m }}{% break %}{% endfor %}") == "1"


def test_a_template_can_refuse_messages() -> None:
    with pytest.raises(TokenizerError, match="chat template refused: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * [1] }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ range(1000000000) | list }}",
        "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ messages[0] + 1 }}",
        "{{ nothing.attribute }}",
    ],
)
def test_a_hostile_or_wrong_template_reaches_nothing(source: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    try:
        rendered = render(source, messages)
    except TokenizerError as error:
        assert "\n" not in str(error)
    else:
        assert rendered == ""  # What the sandbox hides can also look like nothing.
    assert messages == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "source",
    ["{% for %}", "{{", "{% nonsense %}", "{{ x | nonsense }}", "(" * MAX_SOURCE_LEN + "x"],
)
def test_a_template_that_does_not_compile_is_refused_when_loading(source: str) -> None:
    with pytest.raises(TokenizerError, match=r"chat template (does not compile|is longer)"):
        ChatTemplate(source, {})
