"""`python -m training.export`: a training's checkpoint as model.gguf and mmproj.gguf."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor, nn

from training import pictures
from training.student import FULL_EVERY, PATCH, Student, StudentShape
from training.teacher import (
    EPS,
    HEAD_DIM,
    IMAGE_SIZE,
    MEAN,
    N_PATCHES,
    ROPE_BASE,
    SECTIONS,
    STD,
    VISION_EPS,
    Language,
    Mix,
    Narrow,
    Teacher,
    TeacherShape,
)
from training.vocabulary import CHAT_TEMPLATE, IMAGE, IMAGE_END, PRINTABLE, SPECIALS, Vocabulary

NAME = "HalfV Demo"
CONTEXT = 4096
MOST_PIXELS = 640 * 640  # 1,024 tokens
TYPES = {"f32": GGMLQuantizationType.F32, "f16": GGMLQuantizationType.F16, "q8_0": GGMLQuantizationType.Q8_0}
LICENSE_ID = "mit"
STUDENT_NAMES = {IMAGE: "<|vision_start|>", IMAGE_END: "<|vision_end|>"}  # what the runtime looks for there


def load(checkpoint: Path) -> tuple[Teacher | Student, Vocabulary]:
    """The trained model in float32, of the kind that its shape tells."""
    saved = torch.load(checkpoint, weights_only=True)
    is_student = "n_vision" in saved["shape"]
    model = Student(StudentShape(**saved["shape"])) if is_student else Teacher(TeacherShape(**saved["shape"]))
    prefix = "model."
    weights = {
        name.removeprefix(prefix): state["master"]
        for name, state in saved["optimizer"]["state"].items()
        if name.startswith(prefix)
    }
    model.load_state_dict(weights)
    return model.eval(), Vocabulary(saved["words"])


def write_model(path: Path, model: Teacher | Student, vocabulary: Vocabulary, kind: str) -> None:
    shape = model.shape
    is_student = isinstance(model, Student)
    writer = gguf.GGUFWriter(_partial(path), "qwen2vl" if is_student else "llama")
    writer.add_name(NAME)
    writer.add_license(LICENSE_ID)
    writer.add_description("Answers questions about drawings, text, charts, documents and interfaces; not the world.")
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_embd // HEAD_DIM)
    writer.add_head_count_kv(shape.n_embd // HEAD_DIM)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(ROPE_BASE)
    if is_student:
        writer.add_rope_dimension_sections([*SECTIONS, 0])
    writer.add_vocab_size(shape.n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    names = STUDENT_NAMES if is_student else {}
    writer.add_token_list([names.get(token, token) for token in vocabulary.tokens])
    normal = len(vocabulary) - len(SPECIALS)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIALS) + [gguf.TokenType.NORMAL] * normal)
    # the loader wants merges: one of two bytes that no text has
    writer.add_token_merges([f"{PRINTABLE[0xFE]} {PRINTABLE[0xFF]}"])
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.end)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
    _finish(writer, language_tensors(model.language, not is_student), path, kind)


def language_tensors(language: Language, neighbours: bool) -> Iterator[tuple[str, Tensor]]:
    """neighbours: the architecture rotates those, where torch rotates the halves of a head."""
    order = interleaved if neighbours else lambda weight: weight
    yield "token_embd.weight", language.embed.weight
    yield "output_norm.weight", language.norm.weight
    yield "output.weight", language.head.weight
    for i, block in enumerate(language.blocks):
        q, k, v = block.qkv.weight.chunk(3)
        gate, up = block.gate_up.weight.chunk(2)
        yield f"blk.{i}.attn_norm.weight", block.attn_norm.weight
        yield f"blk.{i}.attn_q.weight", order(q)
        yield f"blk.{i}.attn_k.weight", order(k)
        yield f"blk.{i}.attn_v.weight", v
        yield f"blk.{i}.attn_output.weight", block.out.weight
        yield f"blk.{i}.ffn_norm.weight", block.ffn_norm.weight
        yield f"blk.{i}.ffn_gate.weight", gate
        yield f"blk.{i}.ffn_up.weight", up
        yield f"blk.{i}.ffn_down.weight", block.down.weight


def interleaved(weight: Tensor) -> Tensor:
    return weight.view(-1, 2, HEAD_DIM // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_mmproj(path: Path, model: Teacher | Student, kind: str) -> None:
    is_student = isinstance(model, Student)
    writer = gguf.GGUFWriter(_partial(path), "clip")
    writer.add_name(NAME)
    writer.add_type("mmproj")
    writer.add_license(LICENSE_ID)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "qwen2.5vl_merger" if is_student else "gemma3nv")
    writer.add_bool("clip.use_silu" if is_student else "clip.use_gelu", True)
    for key, value in (student_numbers(model.shape) if is_student else numbers(model)).items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", VISION_EPS)
    writer.add_array("clip.vision.image_mean", [MEAN] * 3)
    writer.add_array("clip.vision.image_std", [STD] * 3)
    _finish(writer, student_tensors(model) if is_student else vision_tensors(model), path, kind)


def numbers(model: Teacher) -> dict[str, int]:
    shape = model.shape
    return {
        "embedding_length": shape.n_embd,
        "projection_dim": shape.n_embd,
        "image_size": IMAGE_SIZE,
        "patch_size": IMAGE_SIZE // N_PATCHES,  # of this kind of encoder: so that their quotient is the tokens
        # required by the loader, without a meaning here
        "block_count": sum(map(len, model.vision.stages)),
        "feed_forward_length": 4 * shape.n_embd,
        "attention.head_count": shape.n_embd // HEAD_DIM,
    }


def student_numbers(shape: StudentShape) -> dict[str, int]:
    return {
        "embedding_length": shape.n_vision,
        "projection_dim": shape.n_embd,
        "image_size": pictures.SIZE,
        "patch_size": PATCH,
        "block_count": shape.n_vision_layer,
        "feed_forward_length": shape.n_vision_ff,
        "attention.head_count": shape.n_vision // HEAD_DIM,
        "n_wa_pattern": FULL_EVERY,
        "image_max_pixels": MOST_PIXELS,  # larger ones were never trained with
    }


def student_tensors(model: Student) -> Iterator[tuple[str, Tensor]]:
    vision = model.vision
    kernel = vision.patch.weight.view(-1, 3, PATCH, PATCH)
    yield "v.patch_embd.weight", kernel
    yield "v.patch_embd.weight.1", torch.zeros_like(kernel)  # of the second frame, which is the first again
    for i, block in enumerate(vision.blocks):
        q, k, v = block.qkv.weight.chunk(3)
        gate, up = block.gate_up.weight.chunk(2)
        yield f"v.blk.{i}.ln1.weight", block.attn_norm.weight
        yield f"v.blk.{i}.ln2.weight", block.ffn_norm.weight
        for name, weight in (("q", q), ("k", k), ("v", v), ("out", block.out.weight)):
            yield f"v.blk.{i}.attn_{name}.weight", weight
            yield f"v.blk.{i}.attn_{name}.bias", torch.zeros(len(weight))  # the loader wants them
        for name, weight in (("gate", gate), ("up", up), ("down", block.down.weight)):
            yield f"v.blk.{i}.ffn_{name}.weight", weight
            yield f"v.blk.{i}.ffn_{name}.bias", torch.zeros(len(weight))
    yield "v.post_ln.weight", vision.norm.weight
    for number, layer in ((0, model.projector.up), (2, model.projector.down)):
        yield f"mm.{number}.weight", layer.weight
        yield f"mm.{number}.bias", layer.bias


def vision_tensors(model: Teacher) -> Iterator[tuple[str, Tensor]]:
    vision = model.vision
    yield "v.conv_stem.conv.weight", vision.stem
    yield "v.conv_stem.conv.bias", vision.stem_bias.view(-1, 1, 1)
    yield "v.conv_stem.bn.weight", vision.stem_norm.weight
    for s, blocks in enumerate(vision.stages):
        for b, block in enumerate(blocks):
            for name, tensor in _block_tensors(block):
                # outside the projector this encoder has convolutions only
                yield f"v.blk.{s}.{b}.{name}.weight", tensor[..., None, None] if tensor.dim() == 2 else tensor
    yield "mm.soft_emb_norm.weight", vision.norm.weight
    yield "mm.input_projection.weight", model.projector.linear.weight


def _block_tensors(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if isinstance(block, Narrow):
        yield "conv_exp", block.conv
        yield "bn1", block.norm.weight
        yield "conv_pwl", block.down.weight
    elif isinstance(block, Mix):
        yield "dw_start.conv", block.around
        yield "dw_start.bn", block.norm.weight
        yield "pw_exp.conv", block.up.weight
        yield "pw_proj.conv", block.down.weight
    else:
        yield "norm", block.norm.weight
        for name, layer in (("query", block.query), ("key", block.key), ("value", block.value), ("output", block.out)):
            yield f"attn.{name}.proj", layer.weight


def _finish(writer: gguf.GGUFWriter, tensors: Iterator[tuple[str, Tensor]], path: Path, kind: str) -> None:
    for name, tensor in tensors:
        values = tensor.detach().float().contiguous().numpy()
        if values.ndim in (1, 3):
            type_ = TYPES["f32"]
        elif "dw_start" in name or (values.ndim == 4 and kind == "q8_0"):  # what llama.cpp can convolve
            type_ = TYPES["f16"]
        else:
            type_ = TYPES[kind]
        if type_ in (TYPES["f32"], TYPES["f16"]):
            writer.add_tensor(name, values.astype(np.float16 if type_ == TYPES["f16"] else np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(_partial(path), path)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def export(model: Teacher | Student, vocabulary: Vocabulary, folder: Path, kind: str = "f16") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model.gguf", model, vocabulary, kind)
    write_mmproj(folder / "mmproj.gguf", model, kind)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.export", description="Write a checkpoint as two GGUFs.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="of model.gguf and mmproj.gguf")
    parser.add_argument("--type", choices=TYPES, default="f16", help="of the matrices (%(default)s)")
    args = parser.parse_args()
    export(*load(args.checkpoint), args.folder, args.type)


if __name__ == "__main__":
    main()
