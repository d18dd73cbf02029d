"""Rows to a context: the one way in which both the crowded and the lonely context are fed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import halfv_cpp
import llama_cpp
import numpy as np

from halfv_edge.testing.client import Client
from tests.support import pruned
from tests.support.tiny_models import grid_positions, make_tiny, make_tiny_lora, tiny_image

from .history import (
    MIN_VISUAL_TOKENS,
    Adapted,
    Asked,
    Event,
    History,
    Picture,
    Prepared,
    Removed,
    Row,
    Shifted,
    ToppedUp,
)

N_LAYER = 5
SHAPE = {"n_layer": N_LAYER, "n_embd": 32, "n_head": 4, "n_head_kv": 2, "n_ff": 48}
FREEZE = {
    "ivr.layer": 2,
    "ivr.keep": 0.5,
    "ivr.anchors": 0.3,
    "ssr.layer": 3,
    "ssr.update": 0.0,
    "ssr.rest": "frozen",
    "min_visual_tokens": MIN_VISUAL_TOKENS,
}
PROFILES = {
    "freeze": FREEZE,
    "top": FREEZE | {"ssr.update": 0.2, "ssr.rest": "dropped"},
    "freeze and update, the question asks": FREEZE | {"ssr.update": 0.2, "ivr.query": "question", "ivr.bias": 1.0},
    "drop all": FREEZE | {"ssr.rest": "dropped"},
    "no stage III": FREEZE | {"ssr.layer": N_LAYER},
    "fewer at the end": FREEZE
    | {"ssr.update": 0.2, "ssr.rest": "dropped", "further.layers": [4], "further.keep": [0.1], "ivr.bias": 0.5},
    "text alone at the end": FREEZE
    | {"ssr.update": 0.2, "further.layers": [4], "further.keep": [0.0], "ffn.layer": 2, "ffn.keep": 0.7},
    "some heads and neighbours": FREEZE
    | {"ssr.update": 0.2, "heads.layer": 2, "heads.keep": 0.5, "neighbours.layer": 2, "neighbours.width": 3},
}
ARCHS = ("llama", "qwen2vl")
N_ADAPTERS = 4  # none, a LoRA, a control vector, both


@functools.lru_cache(maxsize=256)
def embeddings(picture: Picture, width: int) -> np.ndarray:
    return tiny_image(picture.rows * picture.cols, width, picture.seed)


@functools.lru_cache(maxsize=64)
def grid(rows: int, cols: int) -> np.ndarray:
    return grid_positions(0, rows, cols)


@dataclass
class Model:
    """A tiny model in memory, with what its contexts are made of."""

    client: Client
    lora: Any
    vector: np.ndarray

    @classmethod
    def load(cls, folder: Path, arch: str, profile: str) -> Model:
        path, adapter = folder / f"{arch} {profile}.gguf", folder / f"{arch} lora.gguf"
        if not path.exists():
            make_tiny(path, arch, profile=PROFILES[profile], **SHAPE)
        if not adapter.exists():
            make_tiny_lora(adapter, arch, **SHAPE)
        client = Client(path, n_ctx=256)
        lora = llama_cpp.llama_adapter_lora_init(client.model, str(adapter).encode())
        assert lora, f"cannot load {adapter}"
        vector = np.random.default_rng(5).standard_normal((N_LAYER - 1, client.n_embd)).astype(np.float32) / 4
        return cls(client, lora, vector)


class Teller:
    """A context and how to talk to it."""

    def __init__(self, model: Model, prepares: bool, **options: Any) -> None:
        self.model = model
        self.client = Client("", beside=model.client, **options)
        pruned.set_prepare(self.client, prepares)
        self.pruning = True
        self.adapters = 0

    def close(self) -> None:
        self.client.close()

    def decode(self, rows: Sequence[tuple[int, Row]], outputs: Sequence[bool]) -> None:
        """One llama_decode: all text, or all pictures. Raises DecodeError."""
        client, seqs = self.client, [seq for seq, _ in rows]
        if not isinstance(rows[0][1].value, Picture):
            client.batch([row.value for _, row in rows], np.array([row.pos for _, row in rows]), seqs, outputs)
            return
        if any(row.announced for _, row in rows):
            pruned.begin_media(client)
        values = np.stack([embeddings(row.value, client.n_embd_inp)[row.index] for _, row in rows])
        pos = np.array([row.pos for _, row in rows])
        if client.is_mrope:
            pos = np.stack([grid(row.value.rows, row.value.cols)[:, row.index] for _, row in rows], axis=1)
            pos[:3] += np.array([row.pos for _, row in rows])
        client.batch(values, pos, seqs, outputs)

    def set_pruning(self, on: bool) -> None:
        if on != self.pruning:
            pruned.set_enabled(self.client, on)
            self.pruning = on

    def set_adapters(self, number: int) -> None:
        ctx, lora, vector = self.client.ctx, number & 1, number & 2
        if lora != self.adapters & 1:
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self.model.lora)
            assert llama_cpp.llama_set_adapters_lora(ctx, adapters, lora, (ctypes.c_float * 1)(0.5)) == 0
        if vector != self.adapters & 2:
            data = self.model.vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) if vector else None
            size, width = (self.model.vector.size, self.client.n_embd) if vector else (0, 0)
            assert llama_cpp.llama_set_adapter_cvec(ctx, data, size, width, 1, N_LAYER - 1) == 0
        self.adapters = number

    def logits(self, index: int) -> np.ndarray:
        return self.client.logits(index)

    def end(self, seq: int) -> int:
        return llama_cpp.llama_memory_seq_pos_max(self.client.memory, seq)

    def cells(self, seq: int) -> list[int]:
        stats = pruned.stats(self.client, seq)
        return [*stats.kv_cells, *stats.further_cells]

    def pending(self, seq: int) -> int:
        return pruned.stats(self.client, seq).n_pending

    def pictures(self, seq: int) -> list[tuple[int, list[int], list[int]]]:
        """Size, and what reached stages II and III, of each."""
        result = []
        while (size := halfv_cpp.halfv_image_size(self.client.ctx, seq, len(result))) >= 0:
            result.append((size, *(pruned.kept(self.client, len(result), stage, seq) for stage in (2, 3))))
        return result


@dataclass
class Alone:
    """A sequence alone: told its history in a context where nothing else ever happened; goes on from what it knows."""

    model: Model
    n_ctx: int
    prepares: bool
    teller: Teller | None = None
    told: list[Event] = field(default_factory=list)
    waiting: list[Row] = field(default_factory=list)
    answers: list[np.ndarray] = field(default_factory=list)

    def tell(self, history: History) -> list[np.ndarray]:
        """The logits of the last outputs that were asked for."""
        if self.teller is None or history.events[: len(self.told)] != self.told:
            self.close()
            self.teller = Teller(self.model, self.prepares, n_ctx=self.n_ctx)
            self.told = []
        for event in history.events[len(self.told) :]:
            self.hear(event)
        self.flush()
        self.told = list(history.events)
        return self.answers

    def hear(self, event: Event) -> None:
        assert self.teller
        memory = self.teller.client.memory
        if isinstance(event, Row):
            before = self.waiting[-1] if self.waiting else None
            if before and (
                isinstance(before.value, Picture) != isinstance(event.value, Picture)
                or before.pruning != event.pruning
                or event.announced
                or len(self.waiting) == 512
            ):
                self.flush()
            self.waiting.append(event)
        elif isinstance(event, Asked):
            before, batch = self.waiting[: -event.size], self.waiting[-event.size :]
            self.waiting = before
            self.flush()
            self.waiting = batch
            self.flush(event.outputs)
        else:
            self.flush()
            if isinstance(event, Removed):
                assert llama_cpp.llama_memory_seq_rm(memory, 0, event.start, event.stop)
            elif isinstance(event, Shifted):
                llama_cpp.llama_memory_seq_add(memory, 0, event.start, -1, event.by)
            elif isinstance(event, Adapted):
                self.teller.set_pruning(event.pruning)
                self.teller.set_adapters(event.adapters)
            elif isinstance(event, Prepared):
                self.teller.set_pruning(True)
                pruned.prepare(self.teller.client)
            elif isinstance(event, ToppedUp):
                pruned.topup(self.teller.client)

    def flush(self, outputs: tuple[int, ...] = ()) -> None:
        assert self.teller
        if self.waiting:
            self.teller.set_pruning(self.waiting[0].pruning)
            self.teller.decode([(0, row) for row in self.waiting], [i in outputs for i in range(len(self.waiting))])
            self.answers = [self.teller.logits(i) for i in outputs]
            self.waiting = []

    def close(self) -> None:
        if self.teller:
            self.teller.close()
        self.teller, self.told, self.waiting = None, [], []
