"""Tiny vision-language models behind llama_cpp.Llama, with our chat handler and with theirs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_cpp import Llama
from llama_cpp.llama_chat_format import MTMDChatHandler

from halfv_edge.gguf.read import read_metadata
from halfv_edge.gguf.write import replace_keys
from halfv_edge.handler.handler import HalfVChatHandler
from halfv_edge.profile.profile import Profile
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.vlm import PROFILE, picture

KINDS = {"llava": "llama", "llava-next": "llama", "qwen2vl": "qwen2vl"}  # encoder: language model
N_VISUAL = {"llava": 100, "llava-next": 500, "qwen2vl": 70}  # of png()
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def png(seed: int) -> bytes:
    out = io.BytesIO()
    picture(seed, 280, 196).save(out, "PNG")
    return out.getvalue()


def data_uri(seed: int) -> str:
    return "data:image/png;base64," + base64.b64encode(png(seed)).decode()


def user(text: str, *urls: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}] if urls else text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


class Place:
    """The files of one kind of model, and Llamas on them that are closed after the test."""

    def __init__(self, folder: Path, kind: str):
        self.kind, self.arch = kind, KINDS[kind]
        self.folder = folder
        self.mmproj = make_tiny_mmproj(folder / "mmproj.gguf", kind, n_embd=64)
        self.pruned = self.model("pruned", profile=PROFILE)
        self.whole = self.model("whole")
        self.open: list[Llama] = []

    def model(self, name: str, template: str | None = TEMPLATE, **options: Any) -> Path:
        meta = {"general.name": "nobody"} | ({"tokenizer.chat_template": template} if template else {})  # of no preset
        return make_tiny(self.folder / f"{name}.gguf", self.arch, **options, **meta)

    def carrying(self, profile: Profile) -> Path:
        """The whole model's file with a profile in it."""
        carries = self.folder / "carries.gguf"
        replace_keys(read_metadata(self.whole), "halfv.", profile.to_gguf(), carries, progress=False)
        return carries

    def llama(self, handler: Any, path: Path | None = None, n_ctx: int = 2048, **options: Any) -> Llama:
        one_thread = {"n_threads": 1, "n_threads_batch": 1}
        made = Llama(
            str(path or self.pruned), chat_handler=handler, n_ctx=n_ctx, verbose=False, **one_thread, **options
        )
        self.open.append(made)
        return made

    def ours(self, path: Path | None = None, **options: Any) -> Chat:
        mine = {name: options.pop(name) for name in ("n_ctx", "n_ubatch", "lora_path", "logits_all") if name in options}
        handler = HalfVChatHandler(str(self.mmproj), verbose=False, **options)
        return Chat(self.llama(handler, path, **mine), handler)

    def upstream(self, like: type = MTMDChatHandler, path: Path | None = None, **options: Any) -> Chat:
        handler = like(str(self.mmproj), verbose=False)
        return Chat(self.llama(handler, path, **options), handler)


class Chat:
    def __init__(self, llama: Llama, handler: Any):
        self.llama, self.handler = llama, handler

    def __call__(self, messages: list[dict[str, Any]], max_tokens: int = 24, **options: Any) -> Any:
        return self.llama.create_chat_completion(messages, max_tokens=max_tokens, temperature=0, **options)

    def text(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return self(messages, **options)["choices"][0]["message"]["content"]

    @property
    def stats(self) -> Any:
        return self.handler.stats


def closing(place: Place) -> Iterator[Place]:
    yield place
    while place.open:
        place.open.pop().close()
