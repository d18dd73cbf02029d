"""Decode one prompt with the libraries of a folder and save every logit: run as a program, once per build.

python drive_decode.py LIB_DIR MODEL OUT.npy [--flash-attn] [--kv-type f16] [--gpu-layers 99]
"""

from __future__ import annotations

import argparse
import os
import sys

from halfv_cpp import library

N_DECODED = 16


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("lib_dir")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--flash-attn", action="store_true")
    parser.add_argument("--kv-type", default="f32")
    parser.add_argument("--gpu-layers", type=int, default=0)
    args = parser.parse_args()

    os.environ[library.GIVEN] = args.lib_dir  # before anything is called
    import numpy as np

    from halfv_edge.testing.client import Client
    from tests.support.tiny_models import grid_positions, tiny_image

    rows, cols = 6, 8
    # The image is longer than a micro-batch, so its graph is built more than once.
    options = {"type_k": args.kv_type, "type_v": args.kv_type, "flash_attn": args.flash_attn}
    options["n_gpu_layers"] = args.gpu_layers
    with Client(args.model, n_ctx=256, n_batch=64, n_ubatch=32, **options) as client:
        client.text([1, 40, 41, 42, 43], logits_last=False)
        pos = grid_positions(client.next_pos[0], rows, cols) if client.is_mrope else None
        client.image(tiny_image(rows * cols, client.n_embd_inp), pos)
        client.text([50, 51, 52, 53, 54, 55])
        logits = [client.logits()]
        for _ in range(N_DECODED):
            logits.append(client.decode(int(logits[-1].argmax())))

    np.save(args.out, np.stack(logits))
    print("patched" if library.is_patched() else "stock")
    return 0


if __name__ == "__main__":
    sys.exit(main())
