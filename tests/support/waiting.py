"""A tiny model with a picture in its prompt, asked through llama_decode and by the reference."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from halfv_cpp import llama_h

from halfv_edge.testing.client import Client
from tests.support.reference.halfv_torch import Image, Reference, Text
from tests.support.tiny_models import FREEZE

TOLERANCE = 1e-4  # f32 against f64; a wrong token or position shows at 1e-1 and more
N_VISUAL = 120
PREFIX = [11, 12, 13, 14]
QUESTION = [21, 22, 23, 24, 25]
OTHER = [31, 32, 33]


def picture(client: Client, seed: int = 0, n: int = N_VISUAL) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, client.n_embd_inp)).astype(np.float32)


def show(client: Client, seed: int = 0, seq: int = 0) -> Image:
    """The usual start of a prompt: some text, then a picture that waits."""
    embd = picture(client, seed)
    client.text(PREFIX, logits_last=False, seq=seq)
    client.image(embd, seq=seq)
    return Image(embd)


def answer(path: Path, *segments: Text | Image, profile: dict | None = FREEZE) -> np.ndarray:
    return Reference(path).run(segments, profile).logits


def close(actual: np.ndarray, expected: np.ndarray) -> bool:
    return float(np.abs(actual - expected).max()) < TOLERANCE


def dense(path: Path, *segments: Text | Image) -> np.ndarray:
    return answer(path, *segments, profile=None)


def save(client: Client, seq: int | None) -> bytes:
    if seq is None:
        size = llama_h.llama_state_get_size(client.ctx)
        buffer = (ctypes.c_uint8 * size)()
        written = llama_h.llama_state_get_data(client.ctx, buffer, size)
    else:
        size = llama_h.llama_state_seq_get_size(client.ctx, seq)
        buffer = (ctypes.c_uint8 * size)()
        written = llama_h.llama_state_seq_get_data(client.ctx, buffer, size, seq)
    assert written == size
    return bytes(buffer)


def load(client: Client, state: bytes, seq: int | None) -> int:
    buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
    if seq is None:
        return llama_h.llama_state_set_data(client.ctx, buffer, len(state))
    return llama_h.llama_state_seq_set_data(client.ctx, buffer, len(state), seq)
