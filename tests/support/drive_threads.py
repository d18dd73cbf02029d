"""What starts C++ threads, with tests/native/count_threads.c preloaded: TEXT.gguf MMPROJ.gguf N_THREADS.

Prints how many were started by each: loading an encoder whose weights are converted, a first question, a second one.
"""

from __future__ import annotations

import ctypes
import sys
from itertools import pairwise

import halfv_cpp
import numpy as np
from halfv_cpp import mtmd_h

from halfv_edge.testing.client import Client

count_threads = ctypes.CDLL(None).count_threads
text, mmproj, n_threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = [count_threads()]

with Client(text, n_threads=n_threads) as client:
    halfv_cpp.check(halfv_cpp.halfv_set_encoder(b"q8_0", halfv_cpp.HALFV_ATTENTION_FAST))
    params = mtmd_h.mtmd_context_params_default()
    params.use_gpu, params.n_threads, params.warmup = False, n_threads, False
    encoder = mtmd_h.mtmd_init_from_file(mmproj.encode(), client.model, params)
    assert encoder
    mtmd_h.mtmd_free(encoder)
    seen.append(count_threads())
    for seed in range(2):
        client.image(np.random.default_rng(seed).standard_normal((120, client.n_embd_inp)).astype(np.float32))
        client.text([21, 22, 23])
        seen.append(count_threads())
print(*(after - before for before, after in pairwise(seen)))
