"""Loads an encoder and encodes a picture, with so many MiB of memory to spare: TEXT.gguf MMPROJ.gguf WEIGHTS MIB...

Prints "load MIB done" or "load MIB failed" for each, and the same for "encode".
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import halfv_cpp
import numpy as np
from halfv_cpp import llama_h, mtmd_h

SIDE = 1120


@contextlib.contextmanager
def spare(mib: int) -> Iterator[None]:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (mib << 20), resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def tell(what: str, mib: int, good: object) -> None:
    print(what, mib, "done" if good else "failed", flush=True)


text, mmproj, weights, *sizes = sys.argv[1:]
model = llama_h.llama_model_load_from_file(text.encode(), llama_h.llama_model_default_params())
halfv_cpp.check(halfv_cpp.halfv_set_encoder(weights.encode(), halfv_cpp.HALFV_ATTENTION_FAST))
params = mtmd_h.mtmd_context_params_default()
params.use_gpu, params.n_threads, params.warmup = False, 1, False
for mib in map(int, sizes):
    with spare(mib):
        context = mtmd_h.mtmd_init_from_file(mmproj.encode(), model, params)
    tell("load", mib, context)
    if context:
        mtmd_h.mtmd_free(context)

context = mtmd_h.mtmd_init_from_file(mmproj.encode(), model, params)
pixels = np.random.default_rng(0).integers(0, 256, SIDE * SIDE * 3, np.uint8)
bitmap = mtmd_h.mtmd_bitmap_init(SIDE, SIDE, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
chunks = mtmd_h.mtmd_input_chunks_init()
marker = mtmd_h.mtmd_default_marker()
prompt = mtmd_h.mtmd_input_text(marker, len(marker), False, True)
assert mtmd_h.mtmd_tokenize(context, chunks, ctypes.byref(prompt), (ctypes.c_void_p * 1)(bitmap), 1) == 0
listed = [mtmd_h.mtmd_input_chunks_get(chunks, i) for i in range(mtmd_h.mtmd_input_chunks_size(chunks))]
is_text = mtmd_h.MTMD_INPUT_CHUNK_TYPE_TEXT
picture = next(chunk for chunk in listed if mtmd_h.mtmd_input_chunk_get_type(chunk) != is_text)
for mib in map(int, sizes):
    with spare(mib):
        code = mtmd_h.mtmd_encode_chunk(context, picture)
    tell("encode", mib, code == 0)
