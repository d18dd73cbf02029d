"""Keys and values of visual tokens rewritten in a context's cache, and their logits mapped as CalibQuant has it.

The cache is rewritten through a saved state: measured is what fewer bits do to answers, and nothing gets smaller.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from halfv_cpp import ggml_h, halfv_h, llama_h, log
from halfv_cpp.ggml_backend_h import ggml_backend_sched_eval_callback
from halfv_cpp.tensor_types import TENSOR_TYPES
from numpy.typing import NDArray

from halfv_edge.engine.context import Context
from halfv_edge.errors import HalfVError, RunError
from halfv_edge.measure.arrays import Floats
from halfv_edge.measure.visual_bits import VisualBits

SHRINK_KEYS, SHRINK_VALUES = 0.5, 0.3  # CalibQuant's, of the extremes at one bit
LEAST, MOST = 0.0, -3.0  # what CalibQuant adds to the least and the greatest logit of a picture
LOGITS = re.compile(rb"kq-(\d+)")
N_BOUNDS = 3 + halfv_h.HALFV_MAX_FURTHER + 1
N_SHAPE = N_BOUNDS + 6  # numbers that begin a state with stages
EXACT: dict[int, np.dtype[Any]] = {
    TENSOR_TYPES["f16"].ggml_type: np.dtype("<f2"),
    TENSOR_TYPES["f32"].ggml_type: np.dtype("<f4"),
}


#
# quantisers
#


def restored(rows: Floats, bits: VisualBits, of_keys: bool) -> Floats:
    """What is left of the keys or values [tokens, channels] of a picture in a layer."""
    if bits.n_bits is None:
        return by_blocks(rows, bits.kind)
    shrink = (SHRINK_KEYS if of_keys else SHRINK_VALUES) if bits.n_bits == 1 else 1.0
    return by_channel(rows, bits.n_bits, shrink)


def by_channel(rows: Floats, n_bits: int, shrink: float) -> Floats:
    """The nearest of 2^n_bits levels between the shrunk extremes of each channel."""
    rows = rows.astype(np.float32)
    low, high = shrink * rows.min(axis=0), shrink * rows.max(axis=0)
    step = (high - low) / (2**n_bits - 1)
    codes = np.round(np.clip((rows - low) / np.where(step == 0, 1, step), 0, 2**n_bits - 1))
    found: Floats = low + step * codes
    return found


def by_blocks(rows: Floats, kind: str) -> Floats:
    """ggml's q8_0 or q4_0: 32 neighbours of a row share a scale in f16."""
    if rows.shape[1] % TENSOR_TYPES[kind].block:
        raise HalfVError(f"Keys of {rows.shape[1]} values have no whole blocks of {kind}: take bits per channel.")
    blocks = rows.astype(np.float32).reshape(-1, TENSOR_TYPES[kind].block)
    if kind == "q8_0":
        scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        codes = np.round(_over(blocks, scale))
    else:
        furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
        scale = furthest / np.float32(-8)
        codes = np.trunc(_over(blocks, scale) + np.float32(8.5)).clip(0, 15) - 8
    found: Floats = (codes * scale.astype(np.float16).astype(np.float32)).reshape(rows.shape)
    return found


def _over(blocks: Floats, scale: Floats) -> Floats:
    """As ggml divides: by the reciprocal."""
    found: Floats = blocks * (np.float32(1) / np.where(scale == 0, np.float32(np.inf), scale))
    return found


#
# saved states
#


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """A layer of a saved state; arrays are views of its bytes."""

    positions: NDArray[np.int32]  # of the cells; tokens of a picture with M-RoPE share one
    keys: Floats  # [cells, channels]
    values: Floats


class SavedState:
    """What a context holds, as bytes. What is written to its layers is the context's after `load`."""

    def __init__(self, context: Context):
        self.context = context
        if llama_h.llama_model_is_hybrid(llama_h.llama_get_model(context.pointer)):
            raise HalfVError("A model with recurrent layers keeps no keys and values there that could be rewritten.")
        size = llama_h.llama_state_seq_get_size(context.pointer, context.seq)
        self.bytes = (ctypes.c_uint8 * size)()
        if llama_h.llama_state_seq_get_data(context.pointer, self.bytes, size, context.seq) != size:
            raise RunError(f"Keys and values could not be saved: {log.last_words()}.")
        self._at = 8  # behind llama.cpp's mark and the sequence

    def layers(self) -> list[CachedLayer]:
        """From the first layer on."""
        stages = self.context.stats().get("kv_size")
        if stages:
            self._take(np.dtype("<u4"), 1 + N_SHAPE)
        found = [layer for size in stages or (1,) if size for layer in self._cache()]
        if not stages and self._at != len(self.bytes):
            raise HalfVError("This model keeps keys and values in a cache that cannot be rewritten.")
        return found

    def _cache(self) -> Iterator[CachedLayer]:
        self._take(np.dtype("<u4"), 1)  # streams: one
        n_cells = self._number()
        extra = [("x_y_token", "<i4", 3)] if self.context.encoder.is_mrope else []
        cells = self._take(np.dtype([("position", "<i4"), ("n_seq", "<u4"), *extra, ("seq", "<i4")]), n_cells)
        transposed, n_layers = self._number(), self._number()
        keys = [self._rows(n_cells, False) for _ in range(n_layers)]
        values = [self._rows(n_cells, bool(transposed)) for _ in range(n_layers)]
        for of_keys, of_values in zip(keys, values, strict=True):
            yield CachedLayer(cells["position"], of_keys, of_values)

    def _rows(self, n_cells: int, transposed: bool) -> Floats:
        number = self._number()
        if number not in EXACT:
            kv_type = next(name for name, type_ in TENSOR_TYPES.items() if type_.ggml_type == number)
            raise HalfVError(parameter="kv_type", value=kv_type, rule="f16 or f32 where policies take fewer bits")
        dtype = EXACT[number]
        if transposed:
            self._number()  # bytes of a value
            n_values = self._number()
            columns: Floats = self._take(dtype, n_cells * n_values).reshape(n_values, n_cells).T
            return columns
        n_values = int(self._take(np.dtype("<u8"), 1)[0]) // dtype.itemsize
        return self._take(dtype, n_cells * n_values).reshape(n_cells, n_values)

    def _number(self) -> int:
        return int(self._take(np.dtype("<u4"), 1)[0])

    def _take(self, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        found: NDArray[Any] = np.frombuffer(memoryview(self.bytes), dtype, count, self._at)
        self._at += count * dtype.itemsize
        return found

    def load(self) -> None:
        """Into the context, in place of what it holds."""
        size = len(self.bytes)
        if llama_h.llama_state_seq_set_data(self.context.pointer, self.bytes, size, self.context.seq) != size:
            raise RunError(f"Rewritten keys and values were refused: {log.last_words()}.")


@dataclass(frozen=True, slots=True)
class Rewritten:
    """Where visual tokens lie by now."""

    cells: dict[int, NDArray[np.intp]]  # of each layer
    head_dim: int


def rewrite(context: Context, bits: VisualBits) -> Rewritten:
    """Give visual tokens what is left of their keys and values."""
    state = SavedState(context)
    cells = {}
    for number, layer in enumerate(state.layers()):
        visual = np.zeros(len(layer.positions), bool)
        for first, end in context.picture_positions():
            of_picture = (layer.positions >= first) & (layer.positions < end)
            if number >= bits.first_layer and of_picture.any():
                layer.keys[of_picture] = restored(layer.keys[of_picture], bits, of_keys=True)
                layer.values[of_picture] = restored(layer.values[of_picture], bits, of_keys=False)
                visual |= of_picture
        cells[number] = np.flatnonzero(visual)  # a loaded state lies in a row, from the first cell on
    state.load()
    n_heads = llama_h.llama_model_n_head_kv(llama_h.llama_get_model(context.pointer))
    return Rewritten(cells, layer.keys.shape[1] // n_heads)


#
# CalibQuant's range
#


class CalibratedRange:
    """Maps the logits of visual tokens, of each head for each token that is decoded, while it knows where those are.

    The context must attend without flash attention. This has to live as long as it does.
    """

    def __init__(self) -> None:
        self.where: Rewritten | None = None
        self.error: BaseException | None = None
        self.callback = ggml_backend_sched_eval_callback(self._on_tensor)

    def _on_tensor(self, tensor: int, ask: bool, _user: object) -> bool:
        try:
            found = LOGITS.fullmatch(ggml_h.ggml_get_name(tensor)) if self.where else None
            if not self.where or not found or not len(cells := self.where.cells[int(found[1])]):
                return False
            if not ask:
                n_heads = ggml_h.ggml_nrows(tensor)
                shape = n_heads, ggml_h.ggml_nbytes(tensor) // 4 // n_heads
                logits = np.ctypeslib.as_array(ggml_h.ggml_get_data_f32(tensor), shape)
                scale = np.sqrt(self.where.head_dim)  # which the softmax divides by
                logits[:, cells] = calibrated(logits[:, cells] / scale) * scale
            return True
        except BaseException as error:  # nothing may cross the C code
            self.error = error
            return False


def calibrated(logits: Floats) -> Floats:
    """[heads, visual tokens]: the least gets LEAST more, the greatest MOST, those between in proportion."""
    low, high = logits.min(axis=1, keepdims=True), logits.max(axis=1, keepdims=True)
    part = (logits - low) / np.where(high == low, 1, high - low)
    found: Floats = logits + LEAST + part * (MOST - LEAST)
    return found
