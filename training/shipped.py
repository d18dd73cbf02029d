"""The demo model's weights out of its GGUF files, as `training.export` wrote them, to train on from there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.student import Student, StudentShape
from training.vocabulary import Vocabulary


def tensors(path: Path) -> dict[str, Tensor]:
    import gguf

    reader = gguf.GGUFReader(path)
    return {each.name: torch.from_numpy(np.array(each.data, dtype=np.float32)) for each in reader.tensors}


def load(folder: Path) -> tuple[Student, Vocabulary]:
    """The model and its words, in float32."""
    vocabulary = Vocabulary.read()
    language, vision = tensors(folder / "model.gguf"), tensors(folder / "mmproj.gguf")
    n_vision = len(vision["v.post_ln.weight"])
    shape = StudentShape(
        n_vocab=len(vocabulary),
        n_vision=n_vision,
        n_vision_ff=len(vision["v.blk.0.ffn_gate.weight"]),
        n_vision_layer=count(vision, "v.blk."),
        n_embd=len(language["output_norm.weight"]),
        n_ff=len(language["blk.0.ffn_gate.weight"]),
        n_layer=count(language, "blk."),
    )
    if language["token_embd.weight"].shape[0] != len(vocabulary):
        raise ValueError(f"'{folder}' has {language['token_embd.weight'].shape[0]} tokens, words.txt {len(vocabulary)}")
    weights = {
        "vision.patch.weight": vision["v.patch_embd.weight"].reshape(n_vision, -1),
        "vision.norm.weight": vision["v.post_ln.weight"],
        "projector.up.weight": vision["mm.0.weight"],
        "projector.up.bias": vision["mm.0.bias"],
        "projector.down.weight": vision["mm.2.weight"],
        "projector.down.bias": vision["mm.2.bias"],
        "language.embed.weight": language["token_embd.weight"],
        "language.norm.weight": language["output_norm.weight"],
        "language.head.weight": language["output.weight"],
    }
    for i in range(shape.n_vision_layer):
        names = {"attn_norm": "ln1", "ffn_norm": "ln2", "out": "attn_out"}
        weights |= block(vision, f"v.blk.{i}.", f"vision.blocks.{i}.", names)
    for i in range(shape.n_layer):
        names = {"attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "out": "attn_output"}
        weights |= block(language, f"blk.{i}.", f"language.blocks.{i}.", names)
    model = Student(shape)
    model.load_state_dict(weights)
    return model, vocabulary


def count(found: dict[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in found if name.startswith(prefix))


def block(found: dict[str, Tensor], there: str, here: str, names: dict[str, str]) -> dict[str, Tensor]:
    weights = {f"{here}{ours}.weight": found[f"{there}{theirs}.weight"] for ours, theirs in names.items()}
    weights[here + "qkv.weight"] = torch.cat([found[f"{there}attn_{part}.weight"] for part in "qkv"])
    weights[here + "gate_up.weight"] = torch.cat([found[f"{there}ffn_{part}.weight"] for part in ("gate", "up")])
    weights[here + "down.weight"] = found[f"{there}ffn_down.weight"]
    return weights


def deeper(model: Student, n_vision_layer: int) -> Student:
    """The same function with more layers in the encoder; the new ones have nothing to add yet."""
    grown = Student(StudentShape(**model.shape.to_dict() | {"n_vision_layer": n_vision_layer}))
    grown.load_state_dict(grown.state_dict() | model.state_dict())
    return grown
