"""Encodes a picture with one set of libraries, through llama_cpp alone: LIB_DIR TEXT.gguf MMPROJ.gguf OUT.npy."""

from __future__ import annotations

import ctypes
import os
import sys

import numpy as np

lib_dir, text, mmproj, out = sys.argv[1:]
os.environ["LLAMA_CPP_LIB_PATH"] = os.environ["MTMD_CPP_LIB"] = lib_dir

from llama_cpp import llama_cpp  # noqa: E402
from llama_cpp import mtmd_cpp as mtmd  # noqa: E402

WIDTH, HEIGHT = 420, 300

model = llama_cpp.llama_model_load_from_file(text.encode(), llama_cpp.llama_model_default_params())
params = mtmd.mtmd_context_params_default()
params.use_gpu, params.n_threads, params.warmup = False, 1, False
context = mtmd.mtmd_init_from_file(mmproj.encode(), model, params)
assert context
pixels = np.random.default_rng(0).integers(0, 256, WIDTH * HEIGHT * 3, np.uint8)
bitmap = mtmd.mtmd_bitmap_init(WIDTH, HEIGHT, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
chunks = mtmd.mtmd_input_chunks_init()
marker = mtmd.mtmd_default_marker()
prompt = mtmd.mtmd_input_text(marker, len(marker), False, True)
assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(prompt), (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap), 1) == 0
found = []
for index in range(mtmd.mtmd_input_chunks_size(chunks)):
    chunk = mtmd.mtmd_input_chunks_get(chunks, index)
    if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
        assert mtmd.mtmd_encode_chunk(context, chunk) == 0
        n_tokens = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        shape = n_tokens, llama_cpp.llama_model_n_embd_inp(model)
        found.append(np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), shape=shape).copy())
np.save(out, np.concatenate(found))
print("patched" if hasattr(llama_cpp._lib, "halfv_version") else "stock")
