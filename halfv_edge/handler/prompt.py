"""llama_cpp's chat handlers up to the prompt: their code runs on stand-ins that evaluate nothing."""

from __future__ import annotations

import ctypes
import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from halfv_edge.engine import template as templates
from halfv_edge.errors import HalfVError
from halfv_edge.handler import upstream

if TYPE_CHECKING:
    import llama_cpp
else:
    llama_cpp = upstream.load()

from llama_cpp import mtmd_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

PROBE = "halfv-probe-7c1e"


def mark_pictures(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The messages with a mark that no text can contain in place of each image_url; of each, the image_url by mark."""
    nonce = secrets.token_hex(8)
    urls: list[dict[str, str]] = []

    def marked(part: Any) -> Any:
        if not isinstance(part, Mapping) or part.get("type") != "image_url":
            return part
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else image
        if not isinstance(url, str):
            raise HalfVError(f"image_url = {str(image)[:80]!r} is not valid: it must be a URL or an object with a url.")
        mark = f"<__picture-{nonce}-{sum(map(len, urls))}__>"
        urls[-1][mark] = url
        return {**part, "image_url": {**image, "url": mark} if isinstance(image, Mapping) else mark}

    out = []
    for message in messages:
        urls.append({})
        content = message.get("content")
        parts = {"content": [marked(part) for part in content]} if isinstance(content, list) else {}
        out.append({**message, **parts})
    return out, urls


class Formatter:
    """Mixed into a handler of llama_cpp. Marks stay in the text, which is kept as `prompt` and not evaluated."""

    def __init__(self, clip_model_path: str, verbose: bool):
        handler: Any = super()  # of llama_cpp's classes, which `formatter` puts behind this one
        handler.__init__(clip_model_path=clip_model_path, verbose=verbose)
        self._mtmd_cpp = self.mtmd_ctx = _Mtmd()
        self._takes_parts = True

    @property
    def prompt(self) -> str:
        return self._mtmd_cpp.text

    @staticmethod
    def get_image_urls(_messages: Any) -> list[str]:
        return []

    @staticmethod
    def _convert_content_part_for_template(part: Any, _media_marker: str) -> Any:
        if not isinstance(part, Mapping) or part.get("type") != "image_url":
            return part
        image = part["image_url"]
        return {"type": "text", "text": image["url"] if isinstance(image, Mapping) else image}

    def _get_chat_template(self, llama: Any) -> str:
        """As upstream, but a file without a template gets the one that the chat gives it."""
        source: str | None = llama.metadata.get("tokenizer.chat_template")
        if not source:
            is_llama = llama.metadata.get("general.architecture") == "llama"
            source = templates.VICUNA if is_llama else templates.CHATML
        self._takes_parts = _takes_parts(source)
        return source

    def _get_template_messages(self, messages: Any, media_marker: str) -> list[Any]:
        """As upstream, but parts are joined for a template that takes nothing but text."""
        handler: Any = super()
        out: list[Any] = handler._get_template_messages(messages, media_marker)
        if not self._takes_parts:
            for message in out:
                if isinstance(message.get("content"), list):
                    message["content"] = "".join(part.get("text", "") for part in message["content"])
        return out


@functools.cache
def formatter(like: type) -> type:
    return type(f"{like.__name__}Prompt", (Formatter, like), {})


@functools.cache
def _takes_parts(template: str) -> bool:
    """Whether a template renders content that is a list of typed parts."""
    content = [{"type": "text", "text": PROBE}]
    render = functools.partial(Jinja2ChatFormatter, eos_token="", bos_token="")
    try:
        text = render(template)(messages=[{"role": "user", "content": content}])
    except (jinja2.TemplateError, ValueError, TypeError, KeyError):
        return False
    return PROBE in text.prompt and str(content) not in text.prompt


class StandIn:
    """What a handler takes for its Llama: it has no KV cache, and the completion is somebody else's."""

    def __init__(self, llama: llama_cpp.Llama, complete: Callable[..., Any]):
        self._llama = llama
        self.create_completion = complete
        self._ctx = SimpleNamespace(kv_cache_clear=lambda: None)
        self.input_ids = np.zeros(0, np.intc)
        self.n_tokens = 0

    def reset(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)


class _InputText(ctypes.Structure):
    """mtmd_input_text, but the text may have null characters and is still there afterwards."""

    _fields_ = (
        ("text", ctypes.py_object),
        ("text_len", ctypes.c_size_t),
        ("add_special", ctypes.c_bool),
        ("parse_special", ctypes.c_bool),
    )


class _Mtmd:
    """What a handler takes for mtmd_cpp: it keeps the text and says that there is nothing to evaluate."""

    mtmd_input_text = _InputText
    text = ""

    def mtmd_input_chunks_init(self) -> _Mtmd:
        return self

    def mtmd_tokenize(self, _context: Any, _chunks: Any, text: Any, *_bitmaps: Any) -> int:
        self.text = text._obj.text.decode()
        return 0

    def mtmd_input_chunks_size(self, _chunks: Any) -> int:
        return 0

    def mtmd_input_chunks_free(self, _chunks: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(mtmd_cpp, name)
