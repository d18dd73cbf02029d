#!/usr/bin/env python3
"""What fewer bits for keys and values of visual tokens could save: bytes of a picture, and time of a decoded token.

scripts/visual-bits.py bytes qwen2.5-vl-3b,llava-1.5-7b 1024,16384,65536
scripts/visual-bits.py decode scaled q4_0 1024,16384 > lines.jsonl

Time is that of caches which hold all of their tokens in the type, text too: of a shape of `halfv bench` with random
weights, on one thread, in turn. No prompt is computed: a state of one token is loaded with that token many times over.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import halfv_cpp
import numpy as np
from halfv_cpp import llama_h
from halfv_cpp.tensor_types import BY_NUMBER

from halfv_edge import files
from halfv_edge.measure.bench import shapes
from halfv_edge.measure.visual_bits import VisualBits
from halfv_edge.measure.visual_cells import N_SHAPE
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import FROZEN, Profile
from halfv_edge.profile.stored import read_gguf
from halfv_edge.testing.client import Client

KINDS = ("q8_0", "q4_0", "1")
TYPES = ("f16", "q8_0", "q4_0")
ROUNDS, TOKENS = 7, 4  # of each context in turn
NUMBER = np.dtype("<u4")


def shares(profile: Profile | None, n_layer: int) -> list[float]:
    """Of a picture's tokens, by layer: what its cache holds."""
    if profile is None:
        return [1.0] * n_layer
    last = profile.ivr_keep if profile.ssr_rest == FROZEN else profile.ssr_update
    bounds = [0, profile.ivr_layer, profile.ssr_layer, n_layer]
    pairs = zip(itertools.pairwise(bounds), (1.0, profile.ivr_keep, last), strict=True)
    return [share for (first, end), share in pairs for _ in range(first, end)]


def print_bytes(names: list[str], counts: list[int]) -> None:
    """A row of a Markdown table for each shape and number of tokens, in MB."""
    for name in names:
        shape = shapes.SHAPES[name]
        about = ModelFile.read(_path(name, "q4_0"))
        n_values = shape.n_head_kv * shape.head_dim
        for n in counts:
            cells = [f"| `{name}`", f"{n:,}"]
            for profile in (None, read_gguf(about)):
                held = [int(share * n) for share in shares(profile, shape.n_layer)]
                whole = sum(2 * 2 * n_values * tokens for tokens in held)
                fewer = [sum(2 * VisualBits(kind).n_bytes(tokens, n_values) for tokens in held) for kind in KINDS]
                cells += [f"{size / 1e6:.3g}" for size in (whole, *fewer)]
            print(" | ".join(cells) + " |")


def print_times(name: str, ftype: str, counts: list[int]) -> None:
    """A line for each number of tokens, profile and type."""
    path = _path(name, ftype)
    about = ModelFile.read(path)
    own = read_gguf(about)
    assert own is not None
    small = dataclasses.replace(own, visual_share=1.0)  # so that deep stages take no more than they need
    for n in counts:
        clients: dict[tuple[str, str], Client] = {}
        sizes = {}
        for (run, profile), type_ in itertools.product((("unpruned", None), ("profile", small)), TYPES):
            client = clients[run, type_] = _client(path, profile, type_, n, next(iter(clients.values()), None))
            sizes[run, type_] = _fill(client, n, shares(profile, about.n_layer))
        times: dict[tuple[str, str], list[float]] = {key: [] for key in clients}
        for at in range(ROUNDS + 1):
            for key, client in clients.items():
                begun = time.process_time()
                for token in range(TOKENS):
                    client.decode(80 + token)
                if at:  # the first warms up
                    times[key].append((time.process_time() - begun) / TOKENS)
        for (run, type_), found in times.items():
            line = {"shape": name, "tokens": n, "run": run, "type": type_, "seconds": statistics.median(found)}
            line |= {"least": min(found), "most": max(found), "state_bytes": sizes[run, type_]}
            print(json.dumps(line), flush=True)
        while clients:  # the first owns the model
            clients.popitem()[1].close()


def _path(name: str, ftype: str) -> Path:
    return shapes.model_file(name, shapes.SHAPES[name], ftype, files.cache_folder() / "shapes")


def _client(path: Path, profile: Profile | None, type_: str, n: int, beside: Client | None) -> Client:
    def under(pointer: int) -> None:
        halfv_cpp.set_model_profile(pointer, profile.to_c() if profile else None)

    return Client(
        path, n_ctx=-(-n // 256) * 256 + 256, n_batch=64, n_ubatch=64, type_k=type_, type_v=type_, flash_attn=True,
        on_model=under, beside=beside,
    )  # fmt: skip


def _fill(client: Client, n: int, held: list[float]) -> int:
    """Load the state of one token with as many of it as the cache of each layer holds of n. Returns its bytes."""
    client.decode(5)
    state = (ctypes.c_uint8 * llama_h.llama_state_seq_get_size(client.ctx, 0))()
    llama_h.llama_state_seq_get_data(client.ctx, state, len(state), 0)
    large = _enlarged(bytes(state), n, held, client.is_mrope)
    buffer = (ctypes.c_uint8 * len(large)).from_buffer(large)
    if llama_h.llama_state_seq_set_data(client.ctx, buffer, len(large), 0) != len(large):
        raise RuntimeError("the enlarged state was refused")
    client.next_pos[0] = n
    return len(large)


def _enlarged(state: bytes, n: int, held: list[float], is_mrope: bool) -> bytearray:
    at = 8 if held == [1.0] * len(held) else 8 + NUMBER.itemsize * (1 + N_SHAPE)
    out = bytearray(state[:at])

    def number() -> int:
        nonlocal at
        at += NUMBER.itemsize
        return int(np.frombuffer(state, NUMBER, 1, at - NUMBER.itemsize)[0])

    layer = 0
    while layer < len(held):
        assert (number(), number()) == (1, 1)  # streams and cells
        cell = np.frombuffer(state, "<i4", 6 if is_mrope else 3, at)
        at += cell.nbytes
        n_cells = max(1, int(held[layer] * n))
        cells = np.tile(cell, (n_cells, 1))
        places = np.arange(n - n_cells, n)  # the last ones: every cache holds the newest
        cells[:, [0, 2, 3] if is_mrope else [0]] = places[:, None]
        out += np.array([1, n_cells], NUMBER).tobytes() + cells.astype("<i4").tobytes()
        transposed, n_layers = number(), number()
        assert not transposed
        out += np.array([0, n_layers], NUMBER).tobytes()
        for _ in range(2 * n_layers):  # keys of each layer, values of each
            header = state[at : at + 12]
            size = int(np.frombuffer(header, "<u8", 1, 4)[0])
            assert int(np.frombuffer(header, NUMBER, 1)[0]) in BY_NUMBER
            at += 12
            out += header + state[at : at + size] * n_cells
            at += size
        layer += n_layers
    out += state[at:]
    return out


def main() -> None:
    match sys.argv[1:]:
        case ["bytes", names, counts]:
            print_bytes(names.split(","), [int(n) for n in counts.split(",")])
        case ["decode", name, ftype, counts]:
            print_times(name, ftype, [int(n) for n in counts.split(",")])
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
