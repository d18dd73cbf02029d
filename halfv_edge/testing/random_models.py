"""Random language models as GGUF: runnable, seeded, made on the fly.

Small ones serve the tests. The same function writes models of true shapes, one tensor at a time: a matrix of more than
BLOCK elements repeats a random block of rows, so a 7B model takes about as long as the disk does.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from halfv_edge.gguf.read import ARRAY, FLOAT32, UINT32
from halfv_edge.profile.keys import KEYS
from halfv_edge.profile.values import WHOLES
from halfv_edge.testing.random_layers import ATTENTION_EVERY, DECAY, delta_net_shapes, layer_shapes, qwen35_metadata

__all__ = ["ARCHS", "MROPE_ARCHS", "layer_shapes", "write_gguf", "write_model"]

ARCHS = ("llama", "qwen2", "qwen3", "qwen2vl", "qwen3vl")
MROPE_ARCHS = ("qwen2vl", "qwen3vl")
OTHER_ARCHS = ("gemma3", "qwen35")  # no reference in torch is written for these: they are for speed

BLOCK = 1 << 22  # elements generated and quantised before a matrix starts to repeat
FTYPES = {name: GGMLQuantizationType[name.upper()] for name in ("f32", "f16", "q8_0", "q4_0")}
WORDS = ("what", "is", "in", "the", "picture", "image", "a", "and", "cat", "dog", "red", "where", "yes", "no")
CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")

ITEM_TYPES = {WHOLES: UINT32, ARRAY: FLOAT32}
PROFILE_TYPES = {  # of a list that of its items
    "version": GGUFValueType.UINT32,
    "calibration.samples": GGUFValueType.UINT32,
    "calibration.source": GGUFValueType.STRING,
    "calibration.divergence": GGUFValueType.FLOAT32,
} | {key.key: GGUFValueType(ITEM_TYPES.get(key.type, key.type)) for key in KEYS.values()}


def write_model(
    path: str | Path,
    arch: str,
    *,
    seed: int = 0,
    n_layer: int = 6,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int = 128,
    head_dim: int | None = None,
    n_vocab: int | None = None,
    n_deepstack_layers: int = 2,
    window: int = 1024,
    ftype: str = "f32",
    profile: Mapping[str, Any] | None = None,
    **extra_meta: Any,
) -> Path:
    """Write a random model and return its path.

    `profile` holds halfv.* keys without the prefix; only the keys given are written, and `version` (1 unless given).
    `extra_meta` overrides or adds metadata, `**{"some.key": value}`; a (value, GGUFValueType) pair forces the type,
    of a list that of its elements. `window` is that of gemma3's sliding layers.
    """
    head_dim = head_dim or n_embd // n_head
    if arch not in ARCHS + OTHER_ARCHS:
        raise ValueError(f"unknown architecture '{arch}'; known: {', '.join(ARCHS + OTHER_ARCHS)}")
    if ftype not in FTYPES:
        raise ValueError(f"unknown ftype '{ftype}'; known: {', '.join(FTYPES)}")
    if arch in ("qwen2", "qwen2vl") and head_dim * n_head != n_embd:
        raise ValueError(f"{arch} needs head_dim = n_embd / n_head, got {head_dim} with {n_embd} / {n_head}")

    tokens, types = _vocabulary(n_vocab)
    n_q, n_kv = n_head * head_dim, n_head_kv * head_dim

    meta: dict[str, Any] = {
        "general.architecture": arch,
        "general.name": f"tiny-{arch}-{seed}",
        f"{arch}.block_count": n_layer,
        f"{arch}.context_length": 32768,
        f"{arch}.embedding_length": n_embd,
        f"{arch}.feed_forward_length": n_ff,
        f"{arch}.attention.head_count": n_head,
        f"{arch}.attention.head_count_kv": n_head_kv,
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        # the pinned llama.cpp does not read this key for qwen2vl and computes with 0
        f"{arch}.attention.layer_norm_rms_epsilon": 0.0 if arch == "qwen2vl" else 1e-5,
        f"{arch}.rope.dimension_count": head_dim,
        f"{arch}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    if arch in MROPE_ARCHS:
        meta[f"{arch}.rope.dimension_sections"] = _rope_sections(arch, head_dim // 2)
    if arch == "qwen3vl":
        meta["qwen3vl.n_deepstack_layers"] = n_deepstack_layers
    if arch == "gemma3":
        meta["gemma3.attention.sliding_window"] = window
    if arch == "qwen35":
        meta |= qwen35_metadata(n_embd, head_dim)
    for key, value in ({"version": 1} | dict(profile) if profile is not None else {}).items():
        meta[f"halfv.{key}"] = (value, PROFILE_TYPES[key]) if key in PROFILE_TYPES else value
    meta |= extra_meta

    # (name, shape, scale of the elements times sqrt(row length)); None marks a norm weight, DECAY a negative one
    plan: list[tuple[str, tuple[int, ...], float | None]] = [
        ("token_embd.weight", (len(tokens), n_embd), n_embd**0.5),
        ("output_norm.weight", (n_embd,), None),
    ]
    if arch != "gemma3":  # its output is its input's transposed
        plan.append(("output.weight", (len(tokens), n_embd), 2.0))
    for layer in range(n_layer):
        if arch == "qwen35" and (layer + 1) % ATTENTION_EVERY:
            shapes = delta_net_shapes(n_embd, n_ff)
        else:
            shapes = layer_shapes(arch, n_embd, n_q, n_kv, n_ff, head_dim)
        plan += [(f"blk.{layer}.{name}", shape, scale) for name, (shape, scale) in shapes]
    write_gguf(Path(path), meta, plan, FTYPES[ftype], seed)
    return Path(path)


def _vocabulary(n_vocab: int | None) -> tuple[list[str], list[int]]:
    """SPM tokens with every byte, some words with all their prefixes (SPM merges pairwise), and padding."""
    pieces = {"▁": None} | {c: None for c in "abcdefghijklmnopqrstuvwxyz"}
    for word in WORDS:
        pieces |= {"▁" + word[:end]: None for end in range(1, len(word) + 1)}
    kind = gguf.TokenType
    vocab = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
    vocab += [(f"<0x{byte:02X}>", kind.BYTE) for byte in range(256)]
    vocab += [(piece, kind.NORMAL) for piece in pieces]
    vocab += [(token, kind.CONTROL) for token in CONTROL]
    if n_vocab is not None and n_vocab < len(vocab):
        raise ValueError(f"n_vocab {n_vocab} is less than the {len(vocab)} tokens of the base vocabulary")
    vocab += [(f"<pad{i}>", kind.UNUSED) for i in range(len(vocab), n_vocab or 0)]
    return [token for token, _ in vocab], [int(type_) for _, type_ in vocab]


def _rope_sections(arch: str, half: int) -> list[int]:
    """The published proportions (16:24:24 and 24:20:20) over `half` rotary pairs."""
    first = half // 4 if arch == "qwen2vl" else half * 3 // 8
    return [first, (half - first + 1) // 2, (half - first) // 2, 0]


def _value_type(value: Any) -> GGUFValueType:
    for kind, type_ in (
        (bool, GGUFValueType.BOOL),
        (int, GGUFValueType.UINT32),
        (float, GGUFValueType.FLOAT32),
        (str, GGUFValueType.STRING),
        (list, GGUFValueType.ARRAY),
    ):
        if isinstance(value, kind):
            return type_
    raise TypeError(f"no GGUF type for metadata value {value!r}")


def write_gguf(
    path: Path,
    meta: Mapping[str, Any],
    plan: list[tuple[str, tuple[int, ...], float | None]],
    ftype: GGMLQuantizationType,
    seed: int,
) -> None:
    partial = path.with_name(path.name + ".partial")
    # GGUFWriter writes the architecture itself, from the first argument
    writer = gguf.GGUFWriter(partial, str(meta["general.architecture"]))
    for key, value in meta.items():
        if key != "general.architecture":
            value, type_ = value if isinstance(value, tuple) else (value, _value_type(value))
            if isinstance(value, list) and type_ != GGUFValueType.ARRAY:
                writer.add_key_value(key, value, GGUFValueType.ARRAY, type_)
            else:
                writer.add_key_value(key, value, type_)

    def stored_type(name: str, shape: tuple[int, ...]) -> GGMLQuantizationType:
        return ftype if len(shape) == 2 and "conv1d" not in name else GGMLQuantizationType.F32

    for name, shape, _ in plan:
        type_ = stored_type(name, shape)
        if shape[-1] % gguf.GGML_QUANT_SIZES[type_][0]:
            raise ValueError(f"{name} has rows of {shape[-1]}, not a multiple of the block size of {type_.name}")
        n_bytes = int(np.prod(shape)) // gguf.GGML_QUANT_SIZES[type_][0] * gguf.GGML_QUANT_SIZES[type_][1]
        writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for index, (name, shape, scale) in enumerate(plan):
        writer.write_tensor_data(_random_tensor(shape, scale, stored_type(name, shape), (seed, index)))
    writer.close()
    _random_block.cache_clear()
    partial.replace(path)


def _random_tensor(
    shape: tuple[int, ...], scale: float | None, type_: GGMLQuantizationType, key: tuple[int, int]
) -> np.ndarray:
    if scale is None or scale == DECAY:
        near_one = np.random.default_rng(key).uniform(0.6, 1.6, shape).astype(np.float32)
        return -near_one if scale == DECAY else near_one
    n_rows, n_cols = shape if len(shape) == 2 else (1, shape[0])
    deviation = scale / n_cols**0.5
    if n_rows * n_cols <= BLOCK:
        return _random_rows(n_rows, n_cols, deviation, type_, key)
    block = _random_block(max(1, BLOCK // n_cols), n_cols, deviation, type_, key[:1])
    return np.take(block, np.arange(key[1], key[1] + n_rows), axis=0, mode="wrap")


def _random_rows(
    n_rows: int, n_cols: int, deviation: float, type_: GGMLQuantizationType, key: tuple[int, ...]
) -> np.ndarray:
    rows = np.random.default_rng(key).standard_normal((n_rows, n_cols), dtype=np.float32)
    quantized: np.ndarray = gguf.quants.quantize(rows * np.float32(deviation), type_)
    return quantized


_random_block = functools.lru_cache(maxsize=16)(_random_rows)
