"""halfv_cpp says what halfv.h says: values, layouts, signatures, order; and its few conveniences work."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import halfv_cpp
import pytest
from halfv_cpp import halfv_compare, halfv_h

from halfv_edge.testing.client import Client
from tests.support.tiny_models import make_tiny, tiny_image

HEADERS = {"halfv.h": halfv_h, "halfv-compare.h": halfv_compare}
C_TYPES = {
    "void": None,
    "bool": ctypes.c_bool,
    "float": ctypes.c_float,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "llama_seq_id": ctypes.c_int32,
    "enum halfv_media": ctypes.c_int,
    "enum halfv_attention": ctypes.c_int,
    "const char *": ctypes.c_char_p,
    "char *": ctypes.c_char_p,
    "double *": ctypes.POINTER(ctypes.c_double),
    "uint8_t *": ctypes.POINTER(ctypes.c_uint8),
    "void *": ctypes.c_void_p,
    "halfv_observer": halfv_compare.halfv_observer,
    "int32_t *": ctypes.POINTER(ctypes.c_int32),
    "struct halfv_profile": halfv_h.halfv_profile,
    "struct halfv_profile *": ctypes.POINTER(halfv_h.halfv_profile),
    "struct halfv_stats *": ctypes.POINTER(halfv_h.halfv_stats),
    "struct llama_model *": ctypes.c_void_p,
    "struct llama_context *": ctypes.c_void_p,
}
PROFILE = {
    "ivr.layer": 2,
    "ivr.keep": 0.5,
    "ivr.anchors": 0.2,
    "ssr.layer": 4,
    "ssr.update": 0.1,
    "ssr.rest": "dropped",
    "min_visual_tokens": 8,
}


def squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@pytest.fixture(params=HEADERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def bindings(name: str) -> types.ModuleType:
    return HEADERS[name]


@pytest.fixture
def header(root: Path, name: str) -> str:
    return (root / "native" / "include" / name).read_text()


@pytest.fixture
def declarations(header: str) -> list[str]:
    found = [squeeze(text) for text in re.findall(r"^LLAMA_API [^;]+;", header, re.MULTILINE)]
    assert len(found) > 2
    return found


def test_layouts_and_values(
    name: str,
    header: str,
    bindings: types.ModuleType,
    root: Path,
    llama_tree: Path,
    cmake_cache: dict[str, str],
    tmp_path: Path,
) -> None:
    plain = re.sub(r"//.*", "", header)
    constants = re.findall(r"^#define (HALFV_\w+)[ ]+\S", plain, re.MULTILINE)
    constants += re.findall(r"\b(HALFV_\w+)\s*=", plain)
    bodies = re.findall(r"struct (\w+) \{(.*?)\};", plain, re.DOTALL)
    structs = {name: re.findall(r"(\w+)(?:\[\d+\])?;", body) for name, body in bodies}
    assert structs
    assert len(constants) > 4

    prints = [f'printf("{name} %d\\n", (int) {name});' for name in constants]
    ours = [f"{name} {getattr(bindings, name)}" for name in constants]
    for struct, fields in structs.items():
        mirror = getattr(bindings, struct)
        assert [name for name, _ in mirror._fields_] == fields
        prints.append(f'printf("{struct} %zu\\n", sizeof(struct {struct}));')
        ours.append(f"{struct} {ctypes.sizeof(mirror)}")
        for field in fields:
            place = f"offsetof(struct {struct}, {field}), sizeof(((struct {struct} *) 0)->{field})"
            prints.append(f'printf("{struct}.{field} %zu %zu\\n", {place});')
            ours.append(f"{struct}.{field} {getattr(mirror, field).offset} {getattr(mirror, field).size}")

    source, program = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text(f'#include "{name}"\n#include <stdio.h>\nint main(void) {{\n' + "\n".join(prints) + "\n}\n")
    folders = (root / "native" / "include", llama_tree / "include", llama_tree / "ggml" / "include")
    command = [cmake_cache["CMAKE_C_COMPILER"], *(f"-I{folder}" for folder in folders), source, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines() == ours
    # and none of our own making
    assert sorted(name for name in dir(bindings) if name.startswith("HALFV_")) == sorted(constants)


def test_signatures(declarations: list[str], bindings: types.ModuleType) -> None:
    for declaration in declarations:
        result, name, arguments = re.fullmatch(r"LLAMA_API (.+?) ?(halfv_\w+)\((.*)\);", declaration).groups()
        kinds = [re.sub(r"\w+$", "", argument).strip() for argument in arguments.split(", ") if argument != "void"]
        function = getattr(bindings, name)
        assert function.restype == C_TYPES[result], name
        assert list(function.argtypes) == [C_TYPES[kind.removeprefix("const ")] for kind in kinds], name


def test_header_order(header: str, declarations: list[str], bindings: types.ModuleType) -> None:
    """Every declaration stands above its binding, word for word and in the header's order."""
    source = Path(bindings.__file__).read_text()
    commented = squeeze(re.sub(r"^# ?", "", source, flags=re.MULTILINE))
    places = [commented.find(declaration) for declaration in declarations]
    assert -1 not in places
    assert places == sorted(places)
    names = [re.search(r"(halfv_\w+)\(", declaration)[1] for declaration in declarations]
    assert re.findall(r"^def (halfv_\w+)\(", source, re.MULTILINE) == names
    for body in re.findall(r"^(?:struct|enum) \w+ \{.*?^\};", header, re.MULTILINE | re.DOTALL):
        assert squeeze(body) in commented


def test_sizes() -> None:
    """Structs of ours say how long they are; the library refuses what cannot be."""
    profile = halfv_cpp.default_profile(28)
    assert profile.size == ctypes.sizeof(halfv_h.halfv_profile)
    assert halfv_h.halfv_stats().size == ctypes.sizeof(halfv_h.halfv_stats)
    assert halfv_h.halfv_profile(ivr_layer=3).ivr_layer == 3
    profile.size += 4
    with pytest.raises(halfv_cpp.HalfvError, match=rf"size = {profile.size} is not valid for struct halfv_profile"):
        halfv_cpp.check(halfv_cpp.halfv_profile_validate(profile, 28))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(make_tiny(tmp_path / "model.gguf", "llama", profile=PROFILE)) as client:
        yield client


def test_one_library() -> None:
    from llama_cpp import llama_cpp

    assert halfv_h._lib._handle == llama_cpp._lib._handle
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
    with pytest.raises(halfv_cpp.HalfvError, match=r"sequence 7 does not exist") as caught:
        halfv_cpp.stats(client.ctx, 7)
    assert caught.value.code == halfv_cpp.HALFV_ERR_ARGUMENT
    with pytest.raises(halfv_cpp.HalfvError, match=r"stage 1 "):
        halfv_cpp.image_tokens(client.ctx, 0, 0, 1)
    with pytest.raises(halfv_cpp.HalfvError, match=r"halfv\.ivr\.keep = 7 "):
        halfv_cpp.check(halfv_cpp.halfv_set_keep(client.ctx, 7.0))
    assert halfv_cpp.check(halfv_cpp.halfv_prepare(client.ctx, 0)) == halfv_cpp.HALFV_NOTHING


def test_without_our_libraries(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB")}
    done = subprocess.run([sys.executable, "-c", "import halfv_cpp"], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "halfv_edge.libs.load()" in last
