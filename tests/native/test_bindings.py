"""halfv_cpp says what the headers say: values, layouts, signatures, order; and its few conveniences work."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import halfv_cpp
import pytest
from halfv_cpp import (
    c_types,
    ggml_backend_h,
    ggml_h,
    halfv_compare_h,
    halfv_h,
    halfv_mtmd_h,
    library,
    llama_h,
    llama_types,
    mtmd_h,
    mtmd_helper_h,
)
from halfv_cpp.tensor_types import BY_NUMBER, TENSOR_TYPES

from halfv_edge.testing.client import Client
from tests.support.tiny_models import DROP, make_tiny, tiny_image

HEADERS = {
    "native/include/halfv.h": (halfv_h,),
    "native/include/halfv-compare.h": (halfv_compare_h,),
    "native/include/halfv-mtmd.h": (halfv_mtmd_h,),
    "include/llama.h": (llama_types, llama_h),
    "ggml/include/ggml.h": (ggml_h,),
    "ggml/include/ggml-backend.h": (ggml_backend_h,),
    "tools/mtmd/mtmd.h": (mtmd_h,),
    "tools/mtmd/mtmd-helper.h": (mtmd_helper_h,),
}
POINTERS = {
    "void": ctypes.c_void_p,
    "char": ctypes.c_char_p,
    "ggml_bf16_t": ctypes.c_char_p,  # bytes
    "unsigned char": ctypes.POINTER(ctypes.c_uint8),
}
NUMBERS = {
    "void": None,
    "int": ctypes.c_int,
    "llama_pos": ctypes.c_int32,
    "llama_seq_id": ctypes.c_int32,
    "llama_token": ctypes.c_int32,
    "llama_state_seq_flags": ctypes.c_uint32,
}
NUMBERS |= {name: getattr(ctypes, f"c_{name}") for name in ("bool", "float", "double")}
NUMBERS |= {f"{name}_t": getattr(ctypes, f"c_{name}") for name in ("int32", "int64", "uint8", "uint32", "uint64")}
NUMBERS["size_t"] = ctypes.c_size_t
HANDLES = ("llama_memory_t", "ggml_backend_dev_t", "ggml_backend_reg_t")
PROFILE = DROP | {"min_visual_tokens": 8}


def squeeze(text: str) -> str:
    """In one line, and without the spaces that only align."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"(?<=\w) \((?=\w)", "(", re.sub(r"\( ", "(", re.sub(r" \)", ")", text)))


def c_type(kind: str) -> Any:
    """What ctypes should have for a C type, by reading it."""
    kind = re.sub(r"\b(const|struct) ?", "", kind).strip()
    pointed, star, _ = kind.partition("*")
    pointed = pointed.strip()
    if kind.startswith("enum ") and not star:
        return ctypes.c_int
    if kind.count("*") == 2:
        return ctypes.POINTER(ctypes.c_void_p)
    if star and pointed in POINTERS:
        return POINTERS[pointed]
    if star and pointed in NUMBERS:
        return ctypes.POINTER(NUMBERS[pointed])
    bound = next((getattr(module, pointed) for module in MODULES if hasattr(module, pointed)), None)
    if star:
        return ctypes.POINTER(bound) if bound else ctypes.c_void_p
    return ctypes.c_void_p if kind in HANDLES else bound or NUMBERS[kind]


MODULES = [module for modules in HEADERS.values() for module in modules]


def functions(module: types.ModuleType) -> list[str]:
    """In the order of the source."""
    return re.findall(r"^@function\ndef (\w+)\(", Path(module.__file__).read_text(), re.MULTILINE)


@pytest.fixture(params=HEADERS, ids=lambda path: Path(path).name)
def path(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def header(root: Path, llama_tree: Path, path: str) -> str:
    return ((root if path.startswith("native") else llama_tree) / path).read_text()


@pytest.fixture
def declarations(header: str) -> dict[str, str]:
    """Every function of the header, in its order."""
    plain = re.sub(r"//.*", "", header)
    pattern = r"^[ \t]*(?:DEPRECATED\()?(?:LLAMA|GGML|MTMD)_API [^;]+;"
    texts = [squeeze(text) for text in re.findall(pattern, plain, re.MULTILINE)]
    return {re.search(r"\b(\w+)\(", text.removeprefix("DEPRECATED("))[1]: text for text in texts}


def structs(module: types.ModuleType) -> list[Any]:
    found = [
        value for value in vars(module).values() if isinstance(value, type) and issubclass(value, ctypes.Structure)
    ]
    return [value for value in found if value.__module__ == module.__name__]


def constants(module: types.ModuleType) -> dict[str, int]:
    names = re.findall(r"^((?:HALFV|LLAMA|GGML|MTMD)_\w+) = ", Path(module.__file__).read_text(), re.MULTILINE)
    return {name: getattr(module, name) for name in names}


def test_layouts_and_values(root: Path, llama_tree: Path, cmake_cache: dict[str, str], tmp_path: Path) -> None:
    """A C program says the same of every constant, struct and field."""
    prints, ours = [], []
    for module in MODULES:
        for name, value in constants(module).items():
            prints.append(f'printf("{name} %lld\\n", (long long) {name});')
            ours.append(f"{name} {value}")
        for struct in structs(module):
            name = struct.__name__
            prints.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
            ours.append(f"{name} {ctypes.sizeof(struct)}")
            for field, *_ in struct._fields_:
                place = f"offsetof(struct {name}, {field}), sizeof(((struct {name} *) 0)->{field})"
                prints.append(f'printf("{name}.{field} %zu %zu\\n", {place});')
                ours.append(f"{name}.{field} {getattr(struct, field).offset} {getattr(struct, field).size}")
    for name, kind in TENSOR_TYPES.items():
        at = f"(enum ggml_type) {kind.ggml_type}"
        prints.append(
            f'printf("%s %d %zu\\n", ggml_type_name({at}), (int) ggml_blck_size({at}), ggml_type_size({at}));'
        )
        ours.append(f"{name} {kind.block} {kind.block_bytes}")
        if kind.ftype is not None:
            label = f"LLAMA_FTYPE_{'ALL' if name == 'f32' else 'MOSTLY'}_{name.upper()}{'_MOE' * (name == 'mxfp4')}"
            prints.append(f'printf("{name} %d\\n", (int) {label});')
            ours.append(f"{name} {kind.ftype}")
    prints.append('printf("%d\\n", (int) GGML_TYPE_COUNT);')
    ours.append(str(max(BY_NUMBER) + 1))
    assert len(ours) > 200

    source, program = tmp_path / "layout.c", tmp_path / "layout"
    includes = "".join(f'#include "{Path(path).name}"\n' for path in HEADERS)
    source.write_text(f"{includes}#include <stdio.h>\nint main(void) {{\n" + "\n".join(prints) + "\n}\n")
    folders = [root / "native/include", *(llama_tree / name for name in ("include", "ggml/include", "tools/mtmd"))]
    libraries = library.lib_dir()
    links = [f"-L{libraries}", "-lggml-base", f"-Wl,-rpath,{libraries}", f"-Wl,-rpath-link,{libraries}"]
    command = [cmake_cache["CMAKE_C_COMPILER"], *(f"-I{folder}" for folder in folders), source, "-o", program, *links]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.lower() for line in said] == [line.lower() for line in ours]


def test_signatures(path: str, declarations: dict[str, str]) -> None:
    for module in HEADERS[path]:
        for name in functions(module):
            declaration = declarations[name].removeprefix("DEPRECATED(")
            result, arguments = re.match(rf"(?:LLAMA|GGML|MTMD)_API (.+?) ?{name}\((.*?)\)", declaration).groups()
            kinds = [re.sub(r"(?<=[ *])\w+$", "", argument).strip() for argument in arguments.split(", ")]
            if name == "ggml_bf16_to_fp32_row":  # its arguments have no names
                kinds = arguments.split(", ")
            wanted = [c_type(kind) for kind in kinds if kind not in ("void", "")]
            assert c_types.signature(getattr(module, name)) == (c_type(result), wanted), name


def test_header_order(path: str, declarations: dict[str, str], header: str) -> None:
    """Every declaration stands above its binding, word for word and in the header's order."""
    for module in HEADERS[path]:
        source = Path(module.__file__).read_text()
        commented = squeeze(re.sub(r"^# ?", "", source, flags=re.MULTILINE))
        order = [name for name in declarations if name in functions(module)]
        assert functions(module) == order
        places = [commented.find(f"{declarations[name]} @function def {name}(") for name in order]
        assert [name for name, place in zip(order, places, strict=True) if place < 0] == []


@pytest.mark.parametrize("name", ["halfv.h", "halfv-compare.h", "halfv-mtmd.h"])
def test_all_of_our_headers(root: Path, name: str) -> None:
    """Comments of structs and enums included."""
    (module,) = HEADERS[f"native/include/{name}"]
    header = (root / "native" / "include" / name).read_text()
    plain = re.sub(r"//.*", "", header)
    assert functions(module) == re.findall(r"^(?:LLAMA|MTMD)_API [^;]*?\b(halfv_\w+)\(", plain, re.MULTILINE)
    values = re.findall(r"^#define (HALFV_\w+)[ ]+\S", plain, re.MULTILINE) + re.findall(r"\b(HALFV_\w+)\s*=", plain)
    assert sorted(constants(module)) == sorted(values)
    bodies = {match[1]: match[0] for match in re.finditer(r"^struct (\w+) \{.*?^\};", plain, re.MULTILINE | re.DOTALL)}
    assert [struct.__name__ for struct in structs(module)] == list(bodies)
    for struct in structs(module):
        fields = re.findall(r"(\w+)(?:\[\w+\])?;", bodies[struct.__name__])
        assert [field for field, *_ in struct._fields_] == fields
    commented = squeeze(re.sub(r"^# ?", "", Path(module.__file__).read_text(), flags=re.MULTILINE))
    for body in re.findall(r"^(?:struct|enum) \w+ \{.*?^\};", header, re.MULTILINE | re.DOTALL):
        assert squeeze(body) in commented


def test_only_what_is_used(root: Path) -> None:
    """And nothing that is used is missing."""
    folders = ("halfv_edge", "convert", "examples", "tests", "training", "bindings")
    sources = {path: path.read_text() for folder in folders for path in (root / folder).rglob("*.py")}
    for module in MODULES:
        short = module.__name__.rpartition(".")[2]
        others = "\n".join(text for path, text in sources.items() if path != Path(module.__file__).resolve())
        if module not in (halfv_h, halfv_compare_h):  # those are whole
            assert [name for name in functions(module) if not re.search(rf"\b{name}\b", others)] == []
        for name in set(re.findall(rf"\b{short}\.((?:llama|ggml|mtmd|halfv|LLAMA|GGML|MTMD|HALFV)_\w+)", others)):
            assert hasattr(module, name), f"{short}.{name}"


def test_sizes() -> None:
    """Structs of ours say how long they are; the library refuses what cannot be."""
    profile = halfv_cpp.default_profile(28)
    assert profile.size == ctypes.sizeof(halfv_h.halfv_profile)
    assert halfv_h.halfv_stats().size == ctypes.sizeof(halfv_h.halfv_stats)
    assert halfv_h.halfv_profile(ivr_layer=3).ivr_layer == 3
    profile.size += 4
    with pytest.raises(halfv_cpp.CallError, match=rf"size = {profile.size} is not valid for struct halfv_profile"):
        halfv_cpp.check(halfv_cpp.halfv_profile_validate(profile, 28))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(make_tiny(tmp_path / "model.gguf", "llama", profile=PROFILE)) as client:
        yield client


def test_one_library() -> None:
    from llama_cpp import llama_cpp

    assert library.open_library("llama")._handle == llama_cpp._lib._handle
    assert halfv_cpp.halfv_version()


def test_a_picture(client: Client) -> None:
    client.text([1, 40, 41], logits_last=False)
    client.image(tiny_image(60, client.n_embd_inp))
    waiting = halfv_cpp.stats(client.ctx)
    assert (waiting["outcome"], waiting["n_visual"], waiting["n_pending"]) == ("pending", 60, 60)

    client.text([50, 51, 52])
    stats = halfv_cpp.stats(client.ctx)
    assert (stats["outcome"], stats["reason"], stats["n_pending"]) == ("pruned", "none", 0)
    assert (stats["n_images"], stats["n_visual"], stats["n_kept"], stats["n_deep"]) == (1, 60, 30, 6)
    assert stats["kv_cells"] == [66, 36, 12]
    assert 0 < stats["flops_spent"] < stats["flops_dense"]

    kept, deep = (halfv_cpp.image_tokens(client.ctx, 0, 0, stage) for stage in (2, 3))
    assert len(kept) == 30
    assert kept == sorted(set(kept))
    assert 0 <= kept[0] <= kept[-1] < 60
    assert len(deep) == 6
    assert set(deep) < set(kept)


def test_profile_of_a_model(client: Client) -> None:
    profile = halfv_cpp.model_profile(client.model)
    assert (profile.ivr_layer, profile.ivr_keep, profile.ssr_rest) == (2, 0.5, halfv_cpp.HALFV_REST_DROPPED)
    profile.ivr_keep = 0.25
    halfv_cpp.set_model_profile(client.model, profile)
    assert halfv_cpp.model_profile(client.model).ivr_keep == 0.25
    halfv_cpp.set_model_profile(client.model, None)
    assert halfv_cpp.model_profile(client.model) is None


def test_errors(client: Client) -> None:
    with pytest.raises(halfv_cpp.CallError, match=r"sequence 7 does not exist") as caught:
        halfv_cpp.stats(client.ctx, 7)
    assert caught.value.code == halfv_cpp.HALFV_ERR_ARGUMENT
    with pytest.raises(halfv_cpp.CallError, match=r"stage 1 "):
        halfv_cpp.image_tokens(client.ctx, 0, 0, 1)
    with pytest.raises(halfv_cpp.CallError, match=r"halfv\.ivr\.keep = 7 "):
        halfv_cpp.check(halfv_cpp.halfv_set_keep(client.ctx, 7.0))
    assert halfv_cpp.check(halfv_cpp.halfv_prepare(client.ctx, 0)) == halfv_cpp.HALFV_NOTHING


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | env)


def test_alone() -> None:
    """Importing it takes nothing but the standard library, and loads nothing native."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "import halfv_cpp\n"
        "from halfv_cpp import llama_h, mtmd_helper_h, ggml_backend_h, halfv_compare_h, log, machine, tensor_types\n"
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(tops, 'libllama' in open('/proc/self/maps').read())\n"
        "halfv_cpp.halfv_version()\n"
        "print('libllama' in open('/proc/self/maps').read())"
    )
    done = run(code, HALFV_LIB_DIR=str(library.lib_dir()))
    assert done.stdout.splitlines() == ["{'halfv_cpp'} False", "True"], done.stderr


def test_without_libraries(tmp_path: Path) -> None:
    done = run("import halfv_cpp; halfv_cpp.halfv_version()", HALFV_LIB_DIR=str(tmp_path))
    last = done.stderr.splitlines()[-1]
    assert (
        last
        == f"halfv_cpp.library.LibraryError: HALFV_LIB_DIR={tmp_path} holds no llama library: give the folder of one."
    )


def test_stock_lib_dir(stock_lib_dir: Path) -> None:
    """They can be loaded, and lack what is ours."""
    code = (
        "import halfv_cpp; from halfv_cpp import library, llama_h\n"
        "print(library.is_patched(), llama_h.llama_model_default_params().n_gpu_layers)\n"
        "halfv_cpp.halfv_version()"
    )
    done = run(code, HALFV_LIB_DIR=str(stock_lib_dir))
    assert done.stdout.startswith("False "), done.stderr
    assert "is a llama.cpp without HalfV: it has no halfv_version." in done.stderr
