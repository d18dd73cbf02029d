"""A conversation as the text that the model was trained on: its own chat template, or a stated fallback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from halfv_edge import libs
from halfv_edge.errors import HalfVError

libs.load()

from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # noqa: E402

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
            self._format = Jinja2ChatFormatter(source, eos_token=eos, bos_token=bos)
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
            prompt = self._format(messages=list(messages)).prompt
        except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
            raise HalfVError(f"The model's chat template refuses this conversation: {error}.") from error
        return prompt.removeprefix(self._leave_out)
