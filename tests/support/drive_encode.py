"""Encodes a picture with the libraries of a folder: LIB_DIR TEXT.gguf MMPROJ.gguf OUT.npy [gpu]."""

from __future__ import annotations

import ctypes
import os
import sys

import numpy as np
from halfv_cpp import library, llama_h, mtmd_h

lib_dir, text, mmproj, out, *where = sys.argv[1:]
os.environ[library.GIVEN] = lib_dir


WIDTH, HEIGHT = 420, 300

model = llama_h.llama_model_load_from_file(text.encode(), llama_h.llama_model_default_params())
params = mtmd_h.mtmd_context_params_default()
params.use_gpu, params.n_threads, params.warmup = where == ["gpu"], 1, False
context = mtmd_h.mtmd_init_from_file(mmproj.encode(), model, params)
assert context
pixels = np.random.default_rng(0).integers(0, 256, WIDTH * HEIGHT * 3, np.uint8)
bitmap = mtmd_h.mtmd_bitmap_init(WIDTH, HEIGHT, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
chunks = mtmd_h.mtmd_input_chunks_init()
marker = mtmd_h.mtmd_default_marker()
prompt = mtmd_h.mtmd_input_text(marker, len(marker), False, True)
assert mtmd_h.mtmd_tokenize(context, chunks, ctypes.byref(prompt), (ctypes.c_void_p * 1)(bitmap), 1) == 0
found = []
for index in range(mtmd_h.mtmd_input_chunks_size(chunks)):
    chunk = mtmd_h.mtmd_input_chunks_get(chunks, index)
    if mtmd_h.mtmd_input_chunk_get_type(chunk) != mtmd_h.MTMD_INPUT_CHUNK_TYPE_TEXT:
        assert mtmd_h.mtmd_encode_chunk(context, chunk) == 0
        n_tokens = mtmd_h.mtmd_input_chunk_get_n_tokens(chunk)
        shape = n_tokens, llama_h.llama_model_n_embd_inp(model)
        found.append(np.ctypeslib.as_array(mtmd_h.mtmd_get_output_embd(context), shape=shape).copy())
np.save(out, np.concatenate(found))
print("patched" if library.is_patched() else "stock")
