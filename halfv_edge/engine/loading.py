"""Weights into memory, contexts to compute in, and what that costs."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import halfv_cpp
from halfv_cpp import halfv_h, llama_h, log
from halfv_cpp.tensor_types import TENSOR_TYPES

from halfv_edge.engine.encoder import Encoder
from halfv_edge.engine.options import FLASH, ModelOptions
from halfv_edge.errors import HalfVError
from halfv_edge.profile.profile import Profile


def load_weights(path: Path, options: ModelOptions, repack: bool) -> int:
    """A llama_model. repack: processors may lay out weights for products of their own."""
    llama_h.llama_backend_init()
    log.clear()
    params = llama_h.llama_model_default_params()
    params.n_gpu_layers = options.n_gpu_layers
    params.use_extra_bufts = repack
    pointer = llama_h.llama_model_load_from_file(str(path).encode(), params)
    if not pointer:
        if log.out_of_memory():
            raise HalfVError(
                f"There is not enough memory for {path}",
                hint="lower {n_gpu_layers}, or use a smaller file",
                settings={"n_gpu_layers": None},
            )
        raise HalfVError(f"{path} cannot be loaded: {log.last_words()}.")
    return int(pointer)


def make_context(
    model: int,
    path: Path,
    options: ModelOptions,
    encoder: Encoder,
    n_threads: int,
    n_ctx: int,
    n_seq: int = 1,
    watch: Any = None,
) -> int:
    """A llama_context of a model from this path, for pictures of this encoder; n_ctx tokens for each sequence."""
    params = llama_h.llama_context_default_params()
    if watch:
        params.cb_eval = watch
    params.n_ctx = n_ctx * n_seq
    params.n_batch = options.n_batch
    params.n_ubatch = options.n_batch if encoder.non_causal else options.n_ubatch
    params.n_seq_max = n_seq
    params.n_threads = params.n_threads_batch = n_threads
    params.flash_attn_type = FLASH[options.flash_attn]
    params.type_k = params.type_v = TENSOR_TYPES[options.kv_type].ggml_type
    log.clear()
    pointer = llama_h.llama_init_from_model(model, params)
    if not pointer:
        if log.out_of_memory():
            raise HalfVError(
                f"There is not enough memory for a context of {n_ctx * n_seq} tokens",
                hint="lower {n_ctx}, use {kv_type}, or close other chats",
                settings={"n_ctx": None, "kv_type": "q8_0"},
            )
        raise HalfVError(f"No context can be made for {path.name}: {log.last_words()}.")
    return int(pointer)


def flops_of(model: int, profile: Profile, n_before: int, n_visual: int, n_after: int) -> tuple[float, float]:
    """Of a llama_model from the picture on: unpruned, and with this profile."""
    dense, spent, struct = ctypes.c_double(), ctypes.c_double(), profile.to_c()
    found = ctypes.byref(dense), ctypes.byref(spent)
    halfv_cpp.check(halfv_h.halfv_flops(model, ctypes.byref(struct), n_before, n_visual, n_after, *found))
    return dense.value, spent.value
