"""A chat template gets what transformers would give it, and cannot do harm."""

from __future__ import annotations

import datetime

import pytest

from halfv_edge.engine.template import Template
from halfv_edge.errors import HalfVError


def render(source: str, text: str = "hello") -> str:
    return Template(source, "qwen2vl", False, "<s>", "</s>").render([{"role": "user", "content": text}])


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>hello</s>"),
        (
            "{% if add_generation_prompt %}\n  {% if tools %}T{% endif %}\n{{ messages[0].content }}:{% endif %}",
            "hello:",
        ),
        ("{{ messages[0].content }}{{ {'a': '<é>'} | tojson }}", 'hello{"a": "<é>"}'),
        ("{{ messages[0].content }}{{ [1] | tojson(indent=1) }}", "hello[\n 1\n]"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hello"),
        ("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "hello"),
        ("{{ messages[0].content[0].text }}", "hello"),  # takes parts
    ],
)
def test_what_templates_use(source: str, prompt: str) -> None:
    assert render(source) == prompt


def test_the_day() -> None:
    assert render("{{ messages[0].content }} {{ strftime_now('%Y') }}") == f"hello {datetime.date.today().year}"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
        ("{{ ''.__class__.__mro__ }}{{ messages[0].content }}", "refuses this conversation: access to attribute"),
        ("{{ messages.append(1) }}", "refuses this conversation"),
        ("{{ 1 / 0 }}", "refuses this conversation: division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses this conversation: maximum recursion"),
        ("{% if %}", "cannot be parsed"),
    ],
)
def test_refusals(source: str, told: str) -> None:
    with pytest.raises(HalfVError, match=told):
        render(source)
