"""What crosses to and from a pretended device, as JSON; in a process of its own, as no device is taken away again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from halfv_cpp import library

library.load()

from halfv_edge.testing.client import Client  # noqa: E402
from tests.support import pretend_device, pruned  # noqa: E402
from tests.support.pretend_device import PretendDevice  # noqa: E402
from tests.support.tiny_models import grid_positions  # noqa: E402

PREFIX, QUESTION = [1, 40, 41, 42], [50, 51, 52, 53]


def count(build_dir: Path, model: Path, n_visual: int, n_ubatch: int, n_gpu_layers: int) -> dict[str, int]:
    """Of one picture and its question. Nothing is computed: what crosses does not depend on it."""
    device = PretendDevice(build_dir / "bin")
    device.compute(False)
    n_ctx = n_visual + 256
    with Client(
        model,
        n_ctx=n_ctx,
        n_batch=2048,
        n_ubatch=n_ubatch,
        n_gpu_layers=n_gpu_layers,
        flash_attn=True,
        type_k="f16",
        type_v="f16",
    ) as client:
        client.text(PREFIX, logits_last=False)
        device.counts()
        pos = grid_positions(client.next_pos[0], 64, n_visual // 64) if client.is_mrope else None
        client.image(np.full((n_visual, client.n_embd_inp), 0.5, np.float32), pos)
        client.text(QUESTION)
        client.logits()
        counts = device.counts()
        stats = pruned.stats(client) if "off" not in sys.argv else None
        kept = {"kept": stats.n_kept, "deep": stats.n_deep} if stats else {}
        return {name: getattr(counts, name) for name, _ in pretend_device.Counts._fields_} | kept


if __name__ == "__main__":
    build_dir, model, n_visual, n_ubatch, n_gpu_layers, *_ = sys.argv[1:]
    print(json.dumps(count(Path(build_dir), Path(model), int(n_visual), int(n_ubatch), int(n_gpu_layers))))
