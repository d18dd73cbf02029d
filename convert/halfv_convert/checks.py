"""Whether llama.cpp can use what was converted: asked of it, and of the shapes where it does not look itself."""

from __future__ import annotations

import re
from typing import Any

from halfv_cpp import llama_h, mtmd_h

from halfv_convert import llama_log
from halfv_edge.errors import HalfVError


def vision_shapes(model: Any, names: dict[str, str]) -> None:
    """The clip loader takes any shape and aborts at the first picture; so the vision encoder is looked at here."""
    width = model.find_vparam(["hidden_size"])
    shapes = {name: tuple(info.shape) for name, info in model.gguf_writer.tensors[0].items()}

    def refuse(name: str, shape: Any, wanted: str) -> None:
        raise HalfVError(f"The tensor {names.get(name, name)} has the shape {list(shape)}: {wanted}.")

    def expect(name: str, *wanted: int | None) -> None:
        shape = shapes.get(name, wanted)
        if len(shape) != len(wanted) or any(w not in (None, s) for s, w in zip(shape, wanted, strict=True)):
            refuse(name, shape, f"expected {[w or 'any' for w in wanted]}")

    blocks: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(r"v\.blk\.(\d+)\.(.+)", name):
            blocks.setdefault(match[2], {})[int(match[1])] = shape
        if name.endswith(".bias") and (weight := shapes.get(name.removesuffix("bias") + "weight")):
            expect(name, weight[0])
    n_blocks = model.find_vparam(model.n_block_keys)
    for kind, by_block in blocks.items():
        common = max(by_block.values(), key=list(by_block.values()).count)
        for block in range(n_blocks):
            name = f"v.blk.{block}.{kind}"
            if block not in by_block:
                raise HalfVError(f"Layer {block} of the vision encoder lacks a tensor that the others have: {kind}.")
            if by_block[block] != common:
                refuse(name, by_block[block], f"in the other layers it is {list(common)}")
            if kind in ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_out.weight"):
                expect(name, width, width)
            elif kind == "attn_qkv.weight":
                expect(name, 3 * width, width)
            elif kind in ("ffn_up.weight", "ffn_gate.weight"):
                expect(name, None, width)
            elif kind == "ffn_down.weight":
                expect(name, width, blocks["ffn_up.weight"][block][0])
            elif kind.startswith("ln"):
                expect(name, width)
    patch = model.find_vparam(["patch_size"])
    if n_blocks == 0:  # no encoder: blocks of patches are projected at once
        expect("v.patch_embd.weight", width, 3 * (patch * model.find_vparam(["pooling_kernel_size"])) ** 2)
    for name in ("v.patch_embd.weight", "v.patch_embd.weight.1") if n_blocks else ():
        expect(name, width, 3, patch, patch)
    if (positions := shapes.get("v.position_embd.weight", (width,)))[-1] != width:
        refuse("v.position_embd.weight", positions, f"each position needs {width} numbers")
    for first, last in (("mm.0.weight", "mm.2.weight"), ("mm.1.weight", "mm.3.weight")):
        if last in shapes and len(shapes.get(first, ())) == 2:
            expect(last, model.n_embd_text, shapes[first][0])
    expect("mm.model.fc.weight", model.n_embd_text, None)


def loads(path: str, names: dict[str, str]) -> None:
    """Has libllama load the model without its weights."""
    lines = llama_log.collect()
    llama_h.llama_backend_init()
    params = llama_h.llama_model_default_params()
    params.no_alloc, params.n_gpu_layers = True, 0
    params.load_mode = llama_h.LLAMA_LOAD_MODE_NONE  # no_alloc wants no mmap
    model = llama_h.llama_model_load_from_file(path.encode(), params)
    if model:
        llama_h.llama_model_free(model)
        return
    why = llama_log.first_error(lines)
    if match := re.search(r"tensor '([^']+)' has wrong shape; expected\s+(.+?), got\s+([\d, ]*\d)", why):
        expected, got = (list(reversed([int(n) for n in re.findall(r"\d+", text)])) for text in match.groups()[1:])
        while len(got) > len(expected) and got[0] == 1:  # llama.cpp fills up to four
            got.pop(0)
        raise HalfVError(f"The tensor {names.get(match[1], match[1])} has the shape {got}: expected {expected}.")
    if match := re.search(r"tensor '([^']+)' not found|missing tensor '([^']+)'", why):
        raise HalfVError(
            f"The checkpoint lacks a tensor: the language model needs what llama.cpp calls {match[1] or match[2]}."
        )
    raise HalfVError(f"llama.cpp cannot load what was converted: {why}.")


def vision_loads(path: str) -> None:
    """Has libmtmd load the encoder, weights and all."""
    lines = llama_log.collect()
    llama_h.llama_backend_init()
    params = mtmd_h.mtmd_context_params_default()
    params.use_gpu = params.warmup = False
    context = mtmd_h.mtmd_init_from_file(path.encode(), None, params)
    if not context:
        why = llama_log.first_error(lines)
        raise HalfVError(f"llama.cpp cannot load the vision encoder that was converted: {why}.")
    mtmd_h.mtmd_free(context)
