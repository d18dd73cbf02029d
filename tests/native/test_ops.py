"""Every op of HalfV's graphs, with its types, is one that CUDA, Metal and Vulkan support.

What they support is in the pinned source's docs/ops/*.csv; docs/backends.md says how nodes are matched with it.
"""

from __future__ import annotations

import csv
import ctypes
import functools
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import halfv_cpp
import pytest
from halfv_cpp import ggml_backend_h, library, llama_h

from halfv_edge.testing.client import Client
from tests.support.defaults import changed
from tests.support.ggml_tensor import Tensor
from tests.support.tiny_models import ARCHS, grid_positions, make_tiny, tiny_image

BACKENDS = ("CUDA", "Metal", "Vulkan")
FREE = ("NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE")  # nothing is computed
# Stage I hands deep-stack rows on, stage II starts at a layer that still adds them.
PROFILE = {
    "ivr.layer": 1,
    "ivr.keep": 0.5,
    "ivr.anchors": 0.2,
    "ssr.layer": 3,
    "ssr.update": 0.1,
    "min_visual_tokens": 8,
}
ROWS, COLS = 6, 10


class Node(NamedTuple):
    op: str
    type: str
    sources: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]  # as the tables write them


#
# walking the graphs
#


@functools.cache
def ggml() -> ctypes.CDLL:
    base = ctypes.CDLL(str(library.library_path("ggml-base")))
    base.ggml_type_name.restype = base.ggml_op_desc.restype = ctypes.c_char_p
    base.ggml_op_desc.argtypes = [ctypes.c_void_p]
    base.ggml_is_contiguous.restype = ctypes.c_bool
    base.ggml_tensor_overhead.restype = ctypes.c_size_t
    return base


def describe(pointer: int) -> Node:
    tensor = Tensor.from_address(pointer)
    sources = [source.contents for source in tensor.src if source]
    op = ggml().ggml_op_desc(pointer).decode()
    facts: dict[str, Any] = {}
    if op == "MUL_MAT":
        a, b = sources
        facts["per"] = "[0,2,1,3]" if a.nb[2] < a.nb[1] else "[0,1,2,3]"
        facts["nr3"] = b.ne[3] // a.ne[3]
    elif op == "ROPE":
        facts["mode"] = tensor.op_params[2]
        facts["ff"] = len(sources) - 2
    elif op == "FLASH_ATTN_EXT":
        facts |= {
            "hsk": sources[1].ne[0],
            "hsv": sources[2].ne[0],
            "mask": int(len(sources) > 3),
            "sinks": len(sources) - 4,
        }
    elif op == "SOFT_MAX":
        facts["mask"] = int(len(sources) > 1)
    elif op in ("ADD", "MUL"):
        facts["perm1"] = int(sources[1].nb[0] > sources[1].nb[1])
    elif op == "PAD":
        before, circular = any(tensor.op_params[i] for i in (0, 2, 4, 6)), tensor.op_params[8]
        facts |= {"v": int(not ggml().ggml_is_contiguous(tensor.src[0])), "before": int(before), "circular": circular}
    return Node(
        op,
        ggml().ggml_type_name(tensor.type).decode(),
        tuple(ggml().ggml_type_name(source.type).decode() for source in sources),
        tuple((name, str(value)) for name, value in facts.items()),
    )


def walk(monkeypatch: pytest.MonkeyPatch, model: Path, **options: Any) -> tuple[set[Node], dict[str, Any] | None]:
    """Every kind of node that a prompt with a picture and one decoded token compute, and the statistics."""
    nodes: set[Node] = set()

    @ggml_backend_h.ggml_backend_sched_eval_callback
    def callback(pointer: int, _ask: bool, _user: int | None) -> bool:
        nodes.add(describe(pointer))
        return False  # its values are not wanted

    params = changed(llama_h.llama_context_default_params, cb_eval=callback)
    with monkeypatch.context() as patch:
        patch.setattr(llama_h, "llama_context_default_params", params)
        client = Client(model, n_ctx=256, n_ubatch=32, **options)
    with client:
        nodes.clear()
        client.text([1, 40, 41, 42], logits_last=False)
        pos = grid_positions(client.next_pos[0], ROWS, COLS) if client.is_mrope else None
        client.image(tiny_image(ROWS * COLS, client.n_embd_inp), pos)
        client.text([50, 51, 52, 53])
        client.decode(54)
        stats = halfv_cpp.stats(client.ctx) if halfv_cpp.model_profile(client.model) else None
    return {node for node in nodes if node.op not in FREE}, stats


#
# the tables
#


def parse(text: str) -> dict[str, str]:
    """`a=1,b=[2,3],split` as a dict; a word alone stands for itself."""
    parts = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text)
    params = dict(part.split("=", 1) if "=" in part else (part, part) for part in parts)
    # backends wrote their tables at different times
    if "type_KV" in params:
        params["type_K"] = params["type_V"] = params["type_KV"]
    if "type_idx" in params:
        params.setdefault("type_dst", params.get("type", ""))
        params.setdefault("type_src", "f32")
    if "nr" in params and "type_a" in params:
        params["nr3"] = params["nr"].strip("[]").split(",")[1]
    if "circular" in params:
        params["before"] = str(int(any(params.get(f"lp{i}", "0") != "0" for i in range(4))))
    return params


@functools.cache
def table(tree: Path, backend: str) -> dict[str, list[tuple[dict[str, str], bool]]]:
    found = defaultdict(list)
    with open(tree / "docs" / "ops" / f"{backend}.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["test_mode"] == "support":
                found[row["op_name"]].append((parse(row["op_params"]), row["supported"] == "1"))
    return found


def same_type(node: Node) -> dict[str, str]:
    assert set(node.sources) == {node.type}, f"say how {node} is found in the tables"
    return {"type": node.type}


KEYS: dict[str, Callable[[Node], dict[str, str]]] = {
    "MUL_MAT": lambda node: {"type_a": node.sources[0], "type_b": node.sources[1]},
    "FLASH_ATTN_EXT": lambda node: {"type_K": node.sources[1], "type_V": node.sources[2]},
    "SET_ROWS": lambda node: {"type_src": node.sources[0], "type_idx": node.sources[1], "type_dst": node.type},
    "CPY": lambda node: {"type_src": node.sources[0], "type_dst": node.type},
    "GET_ROWS": lambda node: {"type": node.sources[0]},
    "ROPE": lambda node: {"type": node.type},
    "SOFT_MAX": lambda node: {"type": node.type, "m_prec": node.sources[-1]},
    "SWIGLU": lambda node: same_type(node) | ({"split": "split"} if len(node.sources) == 2 else {}),
}


def complaint(tree: Path, backend: str, node: Node) -> str | None:
    """Why a node does not count as supported: no line that fits, or one that says no."""
    wanted = KEYS.get(node.op, same_type)(node) | dict(node.facts)
    lines = table(tree, backend).get(node.op, [])
    # a table that does not vary a thing does not mention it
    known = {name for params, _ in lines for name in params}
    wanted = {name: value for name, value in wanted.items() if name in known or name.startswith("type")}
    fitting = [supported for params, supported in lines if wanted.items() <= params.items()]
    if not fitting:
        return f"{backend} has no line for {node.op} {wanted}"
    return None if all(fitting) else f"{backend} does not support every {node.op} {wanted}"


#
# tests
#

JOINED = Node("CONCAT", "f32", ("f32", "f32"), ())
ADDED = {Node("CONT", "f32", ("f32",), ()), JOINED}  # queries, keys and states on their way out
PADDED = Node("PAD", "f32", ("f32",), (("v", "0"),))  # its source is contiguous
BEHIND = PADDED._replace(facts=(*PADDED.facts, ("circular", "0"), ("lp0", "0")))
PRODUCT = Node("MUL_MAT", "f32", ("f32", "f32"), (("per", "[0,1,2,3]"), ("nr3", "1")))
# what devices compute: states as rows of a store, their scores and similarities; keys without RoPE, joined again; few
# heads, padded to all, and the keys of neighbours
ON_DEVICES = (
    Node("SET_ROWS", "f32", ("f32", "i32"), ()),
    Node("GET_ROWS", "f32", ("f32", "i32"), ()),
    PRODUCT,
    Node("CPY", "f16", ("f32",), ()),
    Node("CPY", "f32", ("f16",), ()),
    Node("GET_ROWS", "f32", ("f16", "i32"), ()),
    JOINED,
    BEHIND,
    *(Node(op, "f32", ("f32",), ()) for op in ("CLAMP", "CONT", "SCALE", "L2_NORM")),
    *(Node(op, "f32", ("f32", "f32"), (("perm1", "0"),)) for op in ("ADD", "SUB", "MUL")),
)
COPIES = ("cast", "concat", "cont", "get_rows", "pad", "set_rows")
DEVICE_MAKERS = ("add", "clamp", "l2_norm", "mul", "mul_mat", "scale", "sub", *COPIES)
CORE = ("profile", "cut", "memory", "choice", "prefill", "compare")  # folders of native/src
# the vision encoder's attention by windows, in heads of 80 as Qwen2.5-VL has them; ADD joins halves on a CPU
ENCODER_MAKERS = ("add", "cast", "concat", "cont", "cont_2d", "flash_attn_ext", "mul_mat", "pad", "soft_max_ext")
WINDOWS = (
    Node("FLASH_ATTN_EXT", "f32", ("f32", "f16", "f16"), (("hsk", "80"), ("hsv", "80"), ("mask", "0"))),
    Node("SOFT_MAX", "f32", ("f32",), (("mask", "0"),)),
    Node("MUL_MAT", "f32", ("f32", "f32"), (("per", "[0,2,1,3]"), ("nr3", "1"))),
    Node("CONCAT", "f32", ("f32", "f32"), ()),
    Node("CONT", "f32", ("f32",), ()),
    Node("CPY", "f16", ("f32",), ()),
)
CASES = {"flash": (True, "f16"), "flash-q8_0": (True, "q8_0"), "no-flash": (False, "f16")}


def test_tensor_layout() -> None:
    object_header = 32
    assert ctypes.sizeof(Tensor) + object_header == ggml().ggml_tensor_overhead()


@pytest.mark.parametrize("rest", ["frozen", "dropped"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("arch", ARCHS)
def test_ops_of_the_graphs(
    arch: str, case: str, rest: str, llama_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flash_attn, kv_type = CASES[case]
    shape = {"n_embd": 256, "n_head": 4, "n_head_kv": 2, "ftype": "q4_0"}  # heads of 64: a size that the tables list
    options = {"flash_attn": flash_attn, "type_k": kv_type, "type_v": kv_type}

    dense, _ = walk(monkeypatch, make_tiny(tmp_path / "dense.gguf", arch, **shape), **options)
    model = make_tiny(tmp_path / "pruned.gguf", arch, profile=PROFILE | {"ssr.rest": rest}, **shape)
    pruned, stats = walk(monkeypatch, model, **options)

    assert (stats["outcome"], stats["n_kept"], stats["n_deep"]) == ("pruned", 30, 6)
    assert all(stats[f"us_{stage}"] > 0 for stage in ("stage1", "stage2", "stage3"))
    assert (stats["kv_cells"][2] > 30) == (rest == "frozen")
    assert {"MUL_MAT", "ROPE", "SET_ROWS", "CONT", "FLASH_ATTN_EXT" if flash_attn else "SOFT_MAX"} <= {
        n.op for n in pruned
    }

    assert pruned - dense <= ADDED
    complaints = [complaint(llama_tree, backend, node) for backend in BACKENDS for node in sorted(pruned)]
    assert [text for text in complaints if text] == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("node", ON_DEVICES, ids=lambda node: f"{node.op}-{node.type}")
def test_ops_on_devices(node: Node, backend: str, llama_tree: Path) -> None:
    assert complaint(llama_tree, backend, node) is None


def test_our_code_makes_no_other_ops(root: Path, llama_tree: Path) -> None:
    """What devices compute is met by no walk on a CPU: look for what our sources make."""
    header = (llama_tree / "ggml" / "include" / "ggml.h").read_text()
    makers = set(re.findall(r"GGML_API struct ggml_tensor \*\s*(ggml_\w+)\(\s*struct ggml_context", header))
    assert {"ggml_mul_mat", "ggml_cont", "ggml_view_3d"} <= makers
    free = re.compile(r"ggml_(view|reshape|permute|transpose|new_tensor|get_.*tensor|dup_tensor)")

    def made(pattern: str) -> set[str]:
        names = re.findall(
            r"\b(ggml_\w+)\(", "".join(path.read_text() for path in (root / "native" / "src").glob(pattern))
        )
        return {name for name in names if name in makers and not free.match(name)}

    assert made("encoder/halfv-attend*") == {"ggml_custom_4d"}  # of the CPU alone
    encoder = made("encoder/halfv-encoder*")
    assert encoder == {f"ggml_{name}" for name in ENCODER_MAKERS}
    core = set().union(*map(made, ("*.cpp", *(f"{folder}/*" for folder in CORE))))
    assert core == {f"ggml_{name}" for name in DEVICE_MAKERS}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("node", WINDOWS, ids=lambda node: node.op)
def test_attention_by_windows(node: Node, backend: str, llama_tree: Path) -> None:
    assert complaint(llama_tree, backend, node) is None


def test_heads_are_padded_on_cuda_alone(llama_tree: Path) -> None:
    assert complaint(llama_tree, "CUDA", PADDED) is None


def test_a_missing_op_is_noticed(llama_tree: Path) -> None:
    """CUDA's table says no to flash attention over bf16, and has no line for a type that ggml does not know."""
    facts = (("hsk", "64"), ("hsv", "64"), ("mask", "1"))
    refused = Node("FLASH_ATTN_EXT", "f32", ("f32", "bf16", "bf16", "f16"), facts)
    assert complaint(llama_tree, "CUDA", refused).startswith("CUDA does not support")
    assert complaint(llama_tree, "CUDA", PRODUCT._replace(sources=("q9_9", "f32"))).startswith("CUDA has no line")
