"""halfv.h on a Client. A call that fails raises halfv_cpp.CallError."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import halfv_cpp
from halfv_cpp import check, halfv_h, llama_h

from halfv_edge.testing.client import Client

OK, NOTHING = halfv_cpp.HALFV_OK, halfv_cpp.HALFV_NOTHING
OUTCOME = {word: value for value, word in halfv_cpp.OUTCOMES.items()}
REASON = {word: value for value, word in halfv_cpp.REASONS.items()}
NAMES = {
    "frozen": halfv_cpp.HALFV_REST_FROZEN,
    "dropped": halfv_cpp.HALFV_REST_DROPPED,
    "last": halfv_h.HALFV_QUERY_LAST,
    "question": halfv_h.HALFV_QUERY_QUESTION,
}
MEDIA = {
    "visual": halfv_cpp.HALFV_MEDIA_VISUAL,
    "other": halfv_cpp.HALFV_MEDIA_OTHER,
    "sparse": halfv_cpp.HALFV_MEDIA_SPARSE,
}


def set_profile(model: int, profile: Mapping[str, Any] | None) -> None:
    """For Client's on_model. Keys as in the GGUF metadata, `ivr.layer`; those left out have the default."""
    halfv_cpp.set_model_profile(model, None if profile is None else _struct(model, profile))


def _struct(model: int, profile: Mapping[str, Any]) -> halfv_cpp.halfv_profile:
    values = halfv_cpp.default_profile(llama_h.llama_model_n_layer(model))
    for key, value in profile.items():
        setattr(values, key.replace(".", "_"), NAMES[value] if isinstance(value, str) else value)
    values.n_further = len(profile.get("further.layers", ()))
    return values


def flops(client: Client, profile: Mapping[str, Any], *counts: int) -> tuple[float, float]:
    """Dense and spent, of text before a picture, the picture and text after it."""
    dense, spent = ctypes.c_double(), ctypes.c_double()
    values = ctypes.byref(_struct(client.model, profile))
    check(halfv_cpp.halfv_flops(client.model, values, *counts, ctypes.byref(dense), ctypes.byref(spent)))
    return dense.value, spent.value


def set_stage_cells(model: int, stage1: int = 0, stage2: int = 0, stage3: int = 0) -> None:
    check(halfv_cpp.halfv_model_set_stage_cells(model, stage1, stage2, stage3))


def set_enabled(client: Client, enabled: bool) -> None:
    check(halfv_cpp.halfv_set_enabled(client.ctx, enabled))


def set_keep(client: Client, keep: float) -> None:
    check(halfv_cpp.halfv_set_keep(client.ctx, keep))


def begin_media(client: Client, media: str = "visual") -> None:
    halfv_cpp.halfv_begin_media(client.ctx, MEDIA[media])


def llama_clear(client: Client) -> None:
    llama_h.llama_memory_clear(client.memory, True)


def prepare(client: Client, seq: int = 0) -> int:
    """OK or NOTHING."""
    return check(halfv_cpp.halfv_prepare(client.ctx, seq))


def set_prepare(client: Client, prepare: bool) -> None:
    check(halfv_cpp.halfv_set_prepare(client.ctx, prepare))


def set_undo_bytes(client: Client, n_bytes: int) -> None:
    check(halfv_cpp.halfv_set_undo_bytes(client.ctx, n_bytes))


def undo_bytes(client: Client) -> tuple[int, int]:
    """The budget, and what is taken of it."""
    values = ctypes.c_uint64(), ctypes.c_uint64()
    check(halfv_cpp.halfv_get_undo_bytes(client.ctx, *map(ctypes.byref, values)))
    return values[0].value, values[1].value


def set_undo(client: Client, undo: bool) -> None:
    check(halfv_cpp.halfv_set_undo(client.ctx, undo))


def topup(client: Client, seq: int = 0) -> int:
    """OK or NOTHING."""
    return check(halfv_cpp.halfv_topup(client.ctx, seq))


def stats(client: Client, seq: int = 0) -> halfv_cpp.halfv_stats:
    values = halfv_cpp.halfv_stats()
    check(halfv_cpp.halfv_get_stats(client.ctx, seq, ctypes.byref(values)))
    return values


def image_size(client: Client, image: int = 0, seq: int = 0) -> int:
    return check(halfv_cpp.halfv_image_size(client.ctx, seq, image))


def kept(client: Client, image: int = 0, stage: int = 2, seq: int = 0) -> list[int]:
    """Indices, within the picture, of the tokens that reached stage 2 or 3."""
    return halfv_cpp.image_tokens(client.ctx, seq, image, stage)
