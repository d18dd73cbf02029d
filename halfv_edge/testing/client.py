"""Drives llama_decode as a plain client does: text as tokens, images as raw embedding batches, logits at the end."""

from __future__ import annotations

import collections
import contextlib
import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from halfv_cpp import ggml_h, llama_h
from halfv_cpp.tensor_types import TENSOR_TYPES

LOG: collections.deque[str] = collections.deque(maxlen=1000)


def _collect(_level: int, text: bytes, _user: ctypes.c_void_p) -> None:
    LOG.append(text.decode("utf-8", "replace"))


collect_log = ggml_h.ggml_log_callback(_collect)


def log_text() -> str:
    """What llama.cpp has logged since the last LOG.clear()."""
    return "".join(LOG)


def _last_words() -> str:
    return "; ".join(log_text().strip().splitlines()[-3:])


class DecodeError(RuntimeError):
    def __init__(self, code: int):
        super().__init__(f"llama_decode returned {code}: {_last_words()}")
        self.code = code


MAX_DEVICES = 16  # llama_max_devices()


class Client(contextlib.AbstractContextManager["Client"]):
    """A model and a context. Pieces longer than n_batch are split, as mtmd does.

    One thread by default: on a busy machine the threads of a tiny model wait for each other, at ten times the cost.
    `on_model` is called with the loaded model before the context is made; `on_tensor` is the context's
    ggml_backend_sched_eval_callback; `next_pos` holds where each sequence goes on.
    `beside`: another client, whose model this one uses and which must be closed after it. `packed`: a processor may lay
    out weights for products of its own.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        n_ctx: int = 2048,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        type_k: str = "f32",
        type_v: str = "f32",
        flash_attn: bool | None = False,
        n_gpu_layers: int = 0,
        tensor_split: Sequence[float] | None = None,
        n_threads: int = 1,
        embeddings: bool = False,
        offload_kqv: bool = True,
        kv_unified: bool = False,
        lora: str | Path | None = None,
        lora_scale: float = 1.0,
        on_model: Callable[[int], None] | None = None,
        on_tensor: Any = None,
        beside: Client | None = None,
        packed: bool = True,
    ):
        self.model = self.ctx = 0  # none, or closed
        self.owns_model = beside is None
        llama_h.llama_log_set(collect_log, None)
        llama_h.llama_backend_init()

        model_params = llama_h.llama_model_default_params()
        model_params.n_gpu_layers = n_gpu_layers
        model_params.use_extra_bufts = packed
        if tensor_split:  # shares of the layers, in order of the devices
            shares = (ctypes.c_float * MAX_DEVICES)(*tensor_split)
            model_params.tensor_split = shares
        path = str(model_path).encode()
        self.model = (beside.model if beside else llama_h.llama_model_load_from_file(path, model_params)) or 0
        if not self.model:
            raise RuntimeError(f"cannot load '{model_path}': {_last_words()}")
        if on_model:
            on_model(self.model)

        params = llama_h.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = n_batch
        params.n_ubatch = n_ubatch
        params.n_seq_max = n_seq_max
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = TENSOR_TYPES[type_k].ggml_type
        params.type_v = TENSOR_TYPES[type_v].ggml_type
        params.flash_attn_type = {
            None: llama_h.LLAMA_FLASH_ATTN_TYPE_AUTO,
            False: llama_h.LLAMA_FLASH_ATTN_TYPE_DISABLED,
            True: llama_h.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        }[flash_attn]
        params.embeddings = embeddings
        params.offload_kqv = offload_kqv
        params.kv_unified = kv_unified
        if on_tensor:
            params.cb_eval = on_tensor
        self.ctx = llama_h.llama_init_from_model(self.model, params) or 0
        if not self.ctx:
            self.close()
            raise RuntimeError(f"cannot make a context for '{model_path}': {_last_words()}")
        if lora:
            self._apply_lora(lora, lora_scale)

        self.n_batch = llama_h.llama_n_batch(self.ctx)
        self.n_vocab = llama_h.llama_vocab_n_tokens(llama_h.llama_model_get_vocab(self.model))
        self.n_embd = llama_h.llama_model_n_embd(self.model)
        self.n_embd_inp = llama_h.llama_model_n_embd_inp(self.model)
        rope_type = llama_h.llama_model_rope_type(self.model)
        self.is_mrope = rope_type in (llama_h.LLAMA_ROPE_TYPE_MROPE, llama_h.LLAMA_ROPE_TYPE_IMROPE)
        self.next_pos = [0] * n_seq_max

    def _apply_lora(self, path: str | Path, scale: float) -> None:
        # freed with the model
        adapter = llama_h.llama_adapter_lora_init(self.model, str(path).encode())
        if not adapter:
            raise RuntimeError(f"cannot load the LoRA adapter '{path}': {_last_words()}")
        adapters = (ctypes.c_void_p * 1)(adapter)
        llama_h.llama_set_adapters_lora(self.ctx, adapters, 1, (ctypes.c_float * 1)(scale))

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.ctx:
            llama_h.llama_free(self.ctx)
        if self.model and self.owns_model:
            llama_h.llama_model_free(self.model)
        self.ctx = self.model = 0

    @property
    def memory(self) -> int:
        return llama_h.llama_get_memory(self.ctx)

    def text(self, ids: Sequence[int], logits_last: bool = True, seq: int = 0, pos: int | None = None) -> None:
        start = self.next_pos[seq] if pos is None else pos
        for first in range(0, len(ids), self.n_batch):
            piece = ids[first : first + self.n_batch]
            outputs = [False] * len(piece)
            outputs[-1] = logits_last and first + len(piece) == len(ids)
            self.batch(piece, np.arange(start + first, start + first + len(piece)), [seq] * len(piece), outputs)
        self.next_pos[seq] = start + len(ids)

    def image(self, embd: np.ndarray, pos: np.ndarray | None = None, seq: int = 0) -> None:
        """Feed [n, n_embd_inp] embeddings. `pos` is [4, n] for M-RoPE, [n] otherwise; consecutive when not given."""
        n_tokens = len(embd)
        if pos is None:
            pos = np.arange(self.next_pos[seq], self.next_pos[seq] + n_tokens)
            pos = np.tile(pos, (4, 1)) if self.is_mrope else pos
        for first in range(0, n_tokens, self.n_batch):
            piece = slice(first, min(first + self.n_batch, n_tokens))
            length = piece.stop - piece.start
            self.batch(embd[piece], pos[..., piece], [seq] * length, [False] * length)
        self.next_pos[seq] = int(pos[:3].max() if self.is_mrope else pos.max()) + 1

    def decode(self, token: int, seq: int = 0) -> np.ndarray:
        self.text([token], seq=seq)
        return self.logits()

    def batch(
        self,
        rows: Sequence[int] | np.ndarray,
        pos: np.ndarray,
        seqs: Sequence[int | tuple[int, ...]],
        outputs: Sequence[bool],
    ) -> None:
        """One llama_decode. `rows` are token ids or a float array [n, n_embd_inp]; `seqs` one id or a tuple per row."""
        is_embd = np.ndim(rows) == 2
        if is_embd and np.shape(rows)[1] != self.n_embd_inp:
            raise ValueError(f"embedding rows have {np.shape(rows)[1]} columns, the model takes {self.n_embd_inp}")
        if is_embd and self.is_mrope and np.shape(pos) != (4, len(rows)):
            raise ValueError(f"M-RoPE embeddings need positions [4, {len(rows)}], got {np.shape(pos)}")

        # named so that they outlive the call: the batch only points at them
        values = np.ascontiguousarray(rows, np.float32 if is_embd else np.int32)
        positions = np.ascontiguousarray(pos, np.int32)
        ids = [seq if isinstance(seq, tuple) else (seq,) for seq in seqs]
        id_arrays = [(ctypes.c_int32 * len(row))(*row) for row in ids]
        id_counts = np.array([len(row) for row in ids], np.int32)
        id_pointers = (ctypes.POINTER(ctypes.c_int32) * len(ids))(
            *(ctypes.cast(row, ctypes.POINTER(ctypes.c_int32)) for row in id_arrays)
        )
        flags = np.array(outputs, np.int8)

        batch = llama_h.llama_batch()
        batch.n_tokens = len(values)
        if is_embd:
            batch.embd = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        else:
            batch.token = values.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.pos = positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = id_counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = id_pointers
        batch.logits = flags.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        code = llama_h.llama_decode(self.ctx, batch)
        if code != 0:
            raise DecodeError(code)

    def logits(self, index: int = -1) -> np.ndarray:
        """A copy of the logits of one output: -1 is the last, otherwise the row's index in its batch."""
        return self._copy(llama_h.llama_get_logits_ith(self.ctx, index), self.n_vocab, "logits", index)

    def embedding(self, index: int = -1) -> np.ndarray:
        return self._copy(llama_h.llama_get_embeddings_ith(self.ctx, index), self.n_embd, "embeddings", index)

    @staticmethod
    def _copy(pointer: ctypes._Pointer[ctypes.c_float], length: int, what: str, index: int) -> np.ndarray:
        if not pointer:
            raise RuntimeError(f"no {what} for output {index}: the batch did not ask for them")
        values: np.ndarray = np.ctypeslib.as_array(pointer, shape=(length,)).copy()
        return values
