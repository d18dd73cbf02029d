"""A conversation as the text that the model was trained on: its own chat template, or a stated fallback."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import ext, nodes, parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from halfv_edge.errors import HalfVError

# for files without tokenizer.chat_template, as llama.cpp has them built in
VICUNA = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
    "{% elif m.role == 'user' %}{{ 'USER: ' + m.content + '\n' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + '</s>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

PROBE = "halfv-probe-7c1e"


class Template:
    """Renders messages of text; a picture is whatever marker stands in the text."""

    def __init__(self, source: str | None, architecture: str, add_bos: bool, bos: str, eos: str):
        self.fallback = None if source else ("vicuna" if architecture == "llama" else "chatml")
        source = source or (VICUNA if architecture == "llama" else CHATML)
        self._leave_out = bos if add_bos else ""  # comes with the tokens
        try:
            self._template = _environment().from_string(source, {"bos_token": bos, "eos_token": eos})
        except jinja2.TemplateError as error:
            raise HalfVError(f"The model's chat template cannot be parsed: {error}.") from error
        # some take content as text, some only as a list of typed parts
        self._typed = False
        try:
            self._typed = PROBE not in self.render([{"role": "user", "content": PROBE}])
        except HalfVError:
            self._typed = True

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt, up to where the answer starts."""
        if self._typed:
            messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
        try:
            prompt = self._template.render(messages=list(messages), add_generation_prompt=True)
        except Exception as error:  # a template is a program that came with a file
            raise HalfVError(f"The model's chat template refuses this conversation: {error}.") from error
        return prompt.removeprefix(self._leave_out)


class _Generation(ext.Extension):
    """`{% generation %}`, which marks the answers for training, is as if it were not there."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives a chat template, as that is what templates are written for."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now, "tools": None}
    return made


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
