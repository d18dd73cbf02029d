"""A model over two ggml-rpc-server on this machine, in a process of its own, as no device is taken away again. As JSON:

python -m tests.support.drive_rpc agree SERVER FOLDER  how far answers are from the CPU's
python -m tests.support.drive_rpc count SERVER FOLDER  bytes over the wire of a picture and a question, stock and pruned
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from halfv_cpp import library

library.load()

from halfv_cpp import llama_h  # noqa: E402

from halfv_edge.testing.client import Client  # noqa: E402
from tests.support import pruned, talks  # noqa: E402
from tests.support.agreement import nmse  # noqa: E402
from tests.support.drive_split import PROFILES, make_params, on_cpu, one_question  # noqa: E402
from tests.support.rpc_servers import Wire, register, running  # noqa: E402
from tests.support.talks import OPTIONS, SIZES  # noqa: E402
from tests.support.tiny_models import grid_positions, make_tiny, tiny_image  # noqa: E402

HALVES = {"n_gpu_layers": 99, "tensor_split": [1, 1]}

# Qwen2.5-VL's preset on the shape that `halfv bench` calls scaled
SCALED = {"n_layer": 28, "n_embd": 1024, "n_head": 16, "n_head_kv": 2, "n_ff": 2816, "n_vocab": 8192, "ftype": "q4_0"}
PRESET = {
    "ivr.layer": 2,
    "ivr.keep": 0.25,
    "ivr.anchors": 0.2,
    "ssr.layer": 21,
    "ssr.update": 0.05,
    "ssr.rest": "dropped",
}
GRID = 32, 32
QUESTION = list(range(50, 66))


def agree(folder: Path, wires: list[Wire]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arch, mode in (("llama", "freeze"), ("qwen2vl", "drop")):
        model = make_tiny(folder / "model.gguf", arch, seed=1, profile=PROFILES[mode], **SIZES)
        options = OPTIONS["f32" if mode == "freeze" else "flash-f16"]
        for tell in [one_question, *talks.TALKS]:
            llama_h.llama_model_default_params = on_cpu
            expected = talks.answers(model, tell, **options)
            llama_h.llama_model_default_params = make_params
            for wire in wires:
                wire.reset()
            actual = talks.answers(model, tell, **options, **HALVES)
            error = nmse(np.stack(actual.logits), np.stack(expected.logits)).max()
            found[f"{arch} {tell.__name__}"] = {
                "same_kept": actual.kept == expected.kept,
                "nmse": float(error),
                "bytes": [wire.up + wire.down for wire in wires],
            }
    return found


def count(folder: Path, wires: list[Wire]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, profile in (("stock", None), ("pruned", PRESET)):
        model = make_tiny(folder / f"{name}.gguf", "qwen2vl", profile=profile, **SCALED)
        options = {"flash_attn": True, "type_k": "f16", "type_v": "f16"}
        with Client(model, n_ctx=2048, n_batch=2048, n_ubatch=512, **options, **HALVES) as client:
            client.text([1, 40, 41, 42], logits_last=False)
            n = GRID[0] * GRID[1]
            image, pos = tiny_image(n, client.n_embd_inp), grid_positions(client.next_pos[0], *GRID)
            for wire in wires:
                wire.reset()
            client.image(image, pos)
            client.text(QUESTION)
            client.logits()
            found[name] = {"up": [wire.up for wire in wires], "down": [wire.down for wire in wires]}
            if profile:
                stats = pruned.stats(client)
                found[name] |= {"kept": stats.n_kept, "deep": stats.n_deep}
            for wire in wires:
                wire.reset()
            for token in range(60, 68):
                client.decode(token)
            found[name]["decoded"] = sum(wire.up + wire.down for wire in wires) // 8
    return found


if __name__ == "__main__":
    what, program, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    with running(program, 2) as ports:
        wires = [Wire(port) for port in ports]
        register([wire.endpoint for wire in wires])
        print(json.dumps({"agree": agree, "count": count}[what](folder, wires)), flush=True)
