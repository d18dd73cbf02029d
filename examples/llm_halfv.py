"""A plug-in for https://llm.datasette.io: `llm -m halfv -a cat.jpg "What is this?"`, and `llm -c "What colour is it?"`.

Put it beside a pyproject.toml with `[project.entry-points.llm] halfv = "llm_halfv"`, and `llm install -e .` there.
HALFV_MODEL names the model, as Model.load takes it; without it, it is the demo model that comes along.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import llm

from halfv_edge import HalfVError, Model


@functools.cache
def load() -> Model:
    return Model.load(os.environ.get("HALFV_MODEL"))


@llm.hookimpl
def register_models(register: Any) -> None:
    register(HalfV())


class HalfV(llm.Model):
    model_id = "halfv"
    can_stream = True
    attachment_types = {"image/png", "image/jpeg", "image/webp", "image/gif"}  # noqa: RUF012

    class Options(llm.Options):
        max_tokens: int | None = None
        temperature: float = 0.2

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for earlier in conversation.responses if conversation else ():
            messages += [user(earlier.prompt, earlier.attachments), {"role": "assistant", "content": earlier.text()}]
        options = prompt.options.model_dump(exclude_none=True)
        try:
            with load().chat(messages=messages) as chat:
                yield from chat.ask(user(prompt, prompt.attachments)["content"], **options)
        except HalfVError as error:
            raise llm.ModelError(str(error)) from error


def user(prompt: Any, attachments: Any) -> dict[str, Any]:
    """A question in OpenAI's form; llm has fetched the pictures."""
    pictures = [{"type": "image_url", "image_url": {"url": picture.content_bytes()}} for picture in attachments]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": prompt.prompt or ""}]}
