"""One picture and its question, counted and taken apart by native/trace: prints JSON.

Each part runs as it is, for its time and the counts, and once more waiting after each graph, so that the time a graph
takes is not found in the copy that follows.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("graphs", "waits", "sets", "gets", "copies", "allocation")  # as in trace-ggml.c
COUNTS = (
    "bytes_up",
    "bytes_down",
    "bytes_between",
    "copies_up",
    "copies_down",
    "copies_between",
    "waits",
    "waits_in_graphs",
)
NAME = "the request"


class Counted(ctypes.Structure):
    _fields_ = [
        ("ns", ctypes.c_int64 * len(KINDS)),
        ("calls", ctypes.c_int64 * len(KINDS)),
        *((name, ctypes.c_int64) for name in COUNTS),
    ]


class Trace:
    def __init__(self, file: Path) -> None:
        self.library = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)  # before libllama is

    def of(self, call: Callable[[], Any], serial: bool) -> dict[str, Any]:
        self.library.trace_ggml_set_serial(ctypes.c_bool(serial))
        self.library.trace_ggml_reset()
        started = time.perf_counter()
        answer = call()
        seconds = answer.get("encode_s", time.perf_counter() - started)  # of the encoder without drawing the picture
        counted = Counted()
        self.library.trace_ggml_read(ctypes.byref(counted))
        found: dict[str, Any] = {"ms": 1e3 * seconds, "answer": answer}
        found["ms_in"] = {kind: ns / 1e6 for kind, ns in zip(KINDS, counted.ns, strict=True)}
        found["ms_in"]["the rest, on the host"] = found["ms"] - sum(found["ms_in"].values())
        found["calls"] = dict(zip(KINDS, counted.calls, strict=True))
        return found | {name: getattr(counted, name) for name in COUNTS}


def measure(question: dict[str, Any]) -> dict[str, Any]:
    trace = Trace(Path(question["tracer"]))

    from halfv_edge.gguf import encoder_keys
    from halfv_edge.gguf.read import read_metadata
    from halfv_edge.measure.bench import measurements, shapes, subject
    from halfv_edge.measure.bench.worker import LibrariesUnderTest
    from halfv_edge.measure.bench.workers import EncoderSettings

    name, count = question["shape"], question["tokens"]
    model = subject.random_model(subject.RandomModel(shape=name, folder=Path(question["models"])), (), (), None)
    options = {"n_batch": 2048, "kv_type": "f16", "mmproj_type": "auto", "packed": True}
    options |= {key: question[key] for key in ("n_ubatch", "n_threads", "n_gpu_layers")}
    options |= {"n_prefix": measurements.N_PREFIX, "n_question": measurements.N_QUESTION}
    options |= {"model": str(model.about.path), "mmproj": str(model.mmproj)}
    options["image_max_tokens"] = encoder_keys.token_limit(read_metadata(model.mmproj))
    profile = None
    if question["pruned"]:
        struct = model.profile.to_c()
        profile = {field: getattr(struct, field) for field, _ in struct._fields_ if field != "size"}
    bench = LibrariesUnderTest(options)
    encoder = EncoderSettings().as_json()
    picture = {
        "file": None,
        "drawing": "photo",
        "size": list(shapes.SHAPES[name].vision.size(count)),
        "n_visual": count,
    }
    bench.add(
        NAME,
        profile=profile,
        switched_off=False,
        n_ctx=-(-(count + 256) // 256) * 256,
        choice=0,
        seed=0,
        encoder=encoder,
    )
    parts = {
        "encoder": lambda: bench.encode(encoder, **picture),
        "prompt": lambda: bench.prompt(NAME, 0),
        "prompt and 16 tokens": lambda: bench.prompt(NAME, 16),
    }
    found: dict[str, Any] = {}
    for part, call in parts.items():
        call()
        call()
        found[part] = {"as_it_is": trace.of(call, serial=False), "one_after_the_other": trace.of(call, serial=True)}
    return found


def as_table(found: dict[str, Any]) -> list[str]:
    """`found` has a measurement per name of libraries."""
    titles = (
        "run",
        "part",
        "ms",
        "with waits ms",
        *KINDS,
        "rest of the host",
        "MB up",
        "MB down",
        "MB between",
        "waits",
    )
    lines = ["| " + " | ".join((*titles, "of them in ggml's scheduler")) + " |", "|" + " --- |" * (len(titles) + 1)]
    for run, parts in found.items():
        for part, pair in parts.items():
            plain, serial = pair["as_it_is"], pair["one_after_the_other"]
            cells = [run, part, f"{plain['ms']:.1f}", f"{serial['ms']:.1f}"]
            cells += [f"{ms:.1f} ({serial['calls'].get(kind, '')})" for kind, ms in serial["ms_in"].items()]
            cells += [f"{plain[name] / 1e6:.2f}" for name in COUNTS[:3]]
            lines.append("| " + " | ".join([*cells, str(plain["waits"]), str(plain["waits_in_graphs"])]) + " |")
    for run, parts in found.items():
        stats = parts["prompt"]["as_it_is"]["answer"].get("stats")
        if stats:
            times = ", ".join(f"{key[3:]} {stats[key] / 1e3:.1f} ms" for key in stats if key.startswith("us_"))
            lines += ["", f"{run}: {times}."]
    return lines


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
