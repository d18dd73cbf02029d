"""The vision encoder alone, of random weights, as llama.cpp computes it and as we do.

Both run in one process on the same libraries, in turn; `off` is bit for bit what llama.cpp computes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
from halfv_cpp import llama_h, log
from halfv_cpp.machine import n_cores

from halfv_edge import files
from halfv_edge.engine.encoder import MMPROJ_TYPES, Encoder
from halfv_edge.engine.images import Picture
from halfv_edge.measure.arrays import Floats
from halfv_edge.measure.bench import machine, pictures, shapes
from halfv_edge.measure.bench.results import spread
from halfv_edge.profile.profile import Intake, Profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen2.5-vl-3b", choices=shapes.SHAPES)
    parser.add_argument("--tokens", default="256,1024", help="of each picture, where the encoder takes any size")
    parser.add_argument("--types", default="off,auto", help=f"compared with the first: {', '.join(MMPROJ_TYPES)}; "
                        "auto:8/0.5: from layer 8 on half of the picture")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=n_cores(), help="1: times are the processor's")
    parser.add_argument("--models", type=Path, default=files.cache_folder() / "shapes", help="folder of the files")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if note := machine.busy():
        print(f"warning: {note}", file=sys.stderr)
    log.capture()
    shape = shapes.SHAPES[args.shape]
    counts = [int(part) for part in args.tokens.split(",")] if shape.vision.pixels_per_token else [shape.tokens[0]]
    with tempfile.TemporaryDirectory() as folder:
        rows = list(_measure(args, shape, counts, Path(folder)))
    report = {"shape": args.shape, "commit": machine.commit(), "machine": machine.describe(), "threads": args.threads}
    print(json.dumps(report | {"rows": rows}, indent=2, default=asdict) if args.json else _table(rows))


def files_of(name: str, shape: shapes.Shape, models: Path, folder: Path) -> tuple[Path, int, Path]:
    """The encoder's file, a small language model that it fits, loaded, and that one's file, in a folder that may go."""
    mmproj = shapes.mmproj_file(name, shape, models)
    arch = "qwen3vl" if shape.arch == "qwen3vl" else "llama"  # a row of DeepStack is longer than others
    sizes = {"n_embd": shape.n_embd, "n_layer": 4, "n_ff": 32, "n_deepstack_layers": shape.n_deepstack_layers}
    text = shapes._writers().write_model(folder / "text.gguf", arch, **sizes)
    llama_h.llama_backend_init()
    model = llama_h.llama_model_load_from_file(str(text).encode(), llama_h.llama_model_default_params())
    assert model is not None
    return mmproj, model, text


def _measure(args: argparse.Namespace, shape: shapes.Shape, counts: list[int], folder: Path) -> Any:
    mmproj, model, text = files_of(args.shape, shape, args.models, folder)
    options = {
        "use_gpu": True,
        "n_threads": args.threads,
        "flash_attn": -1,
        "image_max_tokens": None,
        "cache_bytes": 0,
    }
    encoders: dict[str, Encoder] = {}
    load_s = {}
    for name in args.types.split(","):
        start = time.perf_counter()
        weights, _, cut = name.partition(":")
        layer, _, share = (cut or "1/1").partition("/")
        intake = Intake(encoder_layer=int(layer), encoder_keep=float(share))
        base = Profile.default(llama_h.llama_model_n_layer(model))
        halfv_cpp.set_model_profile(model, intake.within(base).to_c())
        encoders[name] = Encoder.load(mmproj, model, text, weights=weights, intake=intake, **options)
        load_s[name] = time.perf_counter() - start
    for count in counts:
        picture = Picture("the picture", pictures.photo(*shape.vision.size(count)))
        times: dict[str, list[float]] = {name: [] for name in encoders}
        found: dict[str, Floats] = {}
        for repeat in range(args.repeats):
            for name in list(encoders)[:: -1 if repeat % 2 else 1]:
                print(f"{count} tokens, {name}, {repeat + 1} of {args.repeats}", file=sys.stderr)
                encoded = encoders[name].tokens(picture)
                start = time.process_time()
                seconds = encoders[name].encode(encoded)
                assert seconds is not None  # nothing is remembered without a cache
                times[name].append(time.process_time() - start if args.threads == 1 else seconds)
                found[name] = np.concatenate([chunk.embd for chunk in encoded.chunks])
        first = next(iter(encoders))
        for name in encoders:
            ratios = spread(base / other for base, other in zip(times[first], times[name], strict=True))
            yield {
                "tokens": len(found[name]),
                "type": name,
                "load_s": load_s[name],
                "encode_s": spread(times[name]),
                "faster": ratios,
                "least_cosine": _least_cosine(found[first], found[name]),
            }
    for encoder in encoders.values():
        encoder.close()
    llama_h.llama_model_free(model)


def _least_cosine(a: Floats, b: Floats) -> float:
    """Of two embeddings of the same token."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| tokens | type | load | encode | faster | least cosine |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['tokens']} | {row['type']} | {row['load_s']:.2f} s | {row['encode_s'].median:.2f} s "
            f"| {row['faster'].median:.2f}x | {row['least_cosine']:.6f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
