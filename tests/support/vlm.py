"""Tiny vision-language models for the tests of the engine, and what checks its answers."""

from __future__ import annotations

import codecs
import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from halfv_cpp import llama_h
from PIL import Image

from halfv_edge.engine.chat import Chat
from halfv_edge.engine.model import Model
from halfv_edge.testing.client import Client
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import DROP, make_tiny

KINDS = {"llava": "llama", "qwen2vl": "qwen2vl"}
PROFILE = DROP
QUESTION, NEXT = "what is in the picture", "where is the cat"
LONG = "root ::= [a-z ]{60}"  # random models end an answer when they like
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# leaves out how earlier answers began, as templates that forget thinking do
FORGETFUL = CHATML.replace("{{ m.content }}", "{{ m.content[3:] if m.role == 'assistant' else m.content }}")


class Vlms(contextlib.ExitStack):
    """Makes each model once, and closes all."""

    def __init__(self, root: Path):
        super().__init__()
        self.root = root
        self.paths: dict[str, Path] = {}
        self.models: dict[str, Model] = {}

    def path(self, kind: str, **meta: object) -> Path:
        """The language model's GGUF; its encoder lies beside it."""
        key = repr((kind, meta))
        if key not in self.paths:
            place = self.root / str(len(self.paths))
            place.mkdir()
            self.paths[key] = make_tiny(place / "model.gguf", KINDS.get(kind, "llama"), profile=PROFILE, **meta)
            make_tiny_mmproj(place / "mmproj-model.gguf", kind, n_embd=64)
        return self.paths[key]

    def load(self, kind: str, meta: dict[str, Any] | None = None, **options: object) -> Model:
        """Without flash attention and in f32, so that float noise decides nothing."""
        key = repr((kind, meta, options))
        if key not in self.models:
            options = {"n_ctx": 1024, "n_threads": 1, "flash_attn": False, "kv_type": "f32"} | options
            self.models[key] = self.enter_context(Model.load(self.path(kind, **(meta or {})), **options))
        return self.models[key]


def picture(seed: int = 0, width: int = 420, height: int = 300) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (5, 7, 3), np.uint8)).resize((width, height), Image.Resampling.NEAREST)


def last_prompt(chat: Chat) -> list:
    """What the context held before the last answer."""
    prompt = chat.runtime.template.render(chat._conversation.rendered[:-1])
    asked = [point for point in chat._conversation.checkpoints if point.text == prompt]
    return chat._conversation.context.items[: asked[-1].count]


def retell(model: Model, items: list, n_tokens: int) -> str:
    """What a greedy answer to these items would be in an empty context that is given them at once."""
    context = model.runtime.context()
    tokens: list[int] = []
    try:
        context.evaluate(items, output=True)
        for _ in range(n_tokens):
            n_vocab = llama_h.llama_vocab_n_tokens(model.runtime.vocab)
            logits = np.ctypeslib.as_array(llama_h.llama_get_logits_ith(context.pointer, -1), (n_vocab,))
            tokens.append(int(logits.argmax()))
            context.evaluate(tokens[-1:], output=True)
    finally:
        context.close()
    return text_of(model, tokens)


def greedy(client: Client, count: int) -> list[int]:
    """The likeliest tokens that go on from what the client holds."""
    tokens = []
    for _ in range(count):
        tokens.append(int(client.logits().argmax()))
        client.decode(tokens[-1])
    return tokens


def text_of(model: Model, tokens: list[int]) -> str:
    """Tokens up to the end of the answer as text."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    answer = itertools.takewhile(lambda token: not llama_h.llama_vocab_is_eog(model.runtime.vocab, token), tokens)
    return "".join(decoder.decode(model.piece(token)) for token in answer) + decoder.decode(b"", final=True)


def detokenized(model: Model, items: list) -> str:
    return b"".join(model.piece(item) for item in items if isinstance(item, int)).decode("utf-8", "replace")


def poisoned(folder: Path, vlms: Vlms) -> Model:
    """A model whose fourth layer gives NaN."""
    import gguf

    source = vlms.path("llava")
    path = folder / "model.gguf"
    path.write_bytes(source.read_bytes())
    (folder / "mmproj-model.gguf").write_bytes((source.parent / "mmproj-model.gguf").read_bytes())
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with path.open("r+b") as file:
        file.seek(int(tensors["blk.3.ffn_norm.weight"].data_offset))
        file.write(np.full(4, np.nan, np.float32).tobytes())
    return Model.load(path, n_ctx=1024, n_threads=1, flash_attn=False, profile="off")
