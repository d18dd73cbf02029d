"""Where the time of a vision encoder goes, operation by operation. Random weights.

Operations are computed one by one, in seconds of the processor: with one thread other programs do not count. On a GPU
in seconds by the clock, each with the wait for it.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from halfv_cpp import ggml_h, log
from halfv_cpp.ggml_backend_h import ggml_backend_sched_eval_callback

from halfv_edge import files
from halfv_edge.engine.encoder import MMPROJ_TYPES, Encoder
from halfv_edge.engine.images import Picture
from halfv_edge.gguf.mmproj import tensors_of
from halfv_edge.gguf.read import read_metadata
from halfv_edge.measure.bench import encoder as encoders
from halfv_edge.measure.bench import pictures, shapes

ATTENTION = ("kqv", "attn")  # how our attention is named; another operation of ours is a product
NOTHING = ("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "NONE")  # is computed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen2.5-vl-3b", choices=shapes.SHAPES)
    parser.add_argument("--tokens", default="256,1024", help="of each picture, where the encoder takes any size")
    parser.add_argument("--types", default="off,auto", help=f"of the weights: {', '.join(MMPROJ_TYPES)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="on the first GPU")
    parser.add_argument("--models", type=Path, default=files.cache_folder() / "shapes", help="folder of the files")
    args = parser.parse_args()
    log.capture()
    shape = shapes.SHAPES[args.shape]
    counts = [int(part) for part in args.tokens.split(",")] if shape.vision.pixels_per_token else [shape.tokens[0]]
    with tempfile.TemporaryDirectory() as folder:
        mmproj, model, text = encoders.files_of(args.shape, shape, args.models, Path(folder))
        for weights in args.types.split(","):
            clock = Clock(time.perf_counter if args.gpu else time.process_time)
            encoder = Encoder.load(
                mmproj, model, text, use_gpu=args.gpu, n_threads=args.threads, flash_attn=-1, image_max_tokens=None,
                cache_bytes=0, weights=weights, on_tensor=clock.callback,
            )  # fmt: skip
            for count in counts:
                picture = Picture("the picture", pictures.photo(*shape.vision.size(count)))
                clock.begin()
                encoded = encoder.tokens(picture)
                encoder.encode(encoded)
                merged = (shape.vision.pixels_per_token // shape.vision.patch or 1) ** 2
                n_patches = merged * sum(chunk.n_rows for chunk in encoded.chunks)
                print(_table(f"{weights}, {n_patches} patches", clock, _products(mmproj, n_patches)))
            encoder.close()


class Clock:
    """Adds up the seconds of each kind of operation."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.callback = ggml_backend_sched_eval_callback(self._on_tensor)
        self.begin()

    def begin(self) -> None:
        self.seconds.clear()
        self._last = self.now()

    def _on_tensor(self, tensor: int, ask: bool, _user: object) -> bool:
        now = self.now()
        if not ask:
            self.seconds[_kind(tensor)] += now - self._last
        self._last = self.now()
        return True


def _kind(tensor: int) -> str:
    operation = ggml_h.ggml_op_desc(tensor).decode()
    if operation == "CUSTOM":
        return "attention" if ggml_h.ggml_get_name(tensor).decode().startswith(ATTENTION) else "MUL_MAT"
    return "attention" if operation == "FLASH_ATTN_EXT" else operation


def _products(mmproj: Path, n_patches: int) -> float:
    """FLOPs of the layers' matrices."""
    tensors = tensors_of(read_metadata(mmproj))
    numbers = sum(t.shape[0] * t.n_rows for t in tensors if t.name.startswith("v.blk.") and len(t.shape) == 2)
    return 2.0 * numbers * n_patches


def _table(title: str, clock: Clock, flops: float) -> str:
    total = sum(clock.seconds.values())
    lines = [f"{title}: {total:.2f} s", "| operation | seconds | share | GFLOP/s |", "|---|---|---|---|"]
    for name, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        if seconds >= 0.002 * total and name not in NOTHING:
            rate = f"{flops / seconds / 1e9:.0f}" if name == "MUL_MAT" else ""
            lines.append(f"| {name} | {seconds:.2f} | {seconds / total:.1%} | {rate} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
