"""Loads our libraries before any test imports llama_cpp, and says where the CMake build is."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from halfv_cpp import library

# Test files run side by side, of models so small that threads would only wait for each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch
library.load()
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="halfv-state-")  # not the conversations of whoever runs this

from halfv_edge.engine.model import Model  # noqa: E402
from tests.support import ROOT, pretend_device  # noqa: E402
from tests.support.building import build  # noqa: E402
from tests.support.vlm import KINDS, Vlms  # noqa: E402

# What can change the bits must be the same in both builds.
SAME_OPTIONS = re.compile(
    r"(GGML|Vulkan)_(?!AVAILABLE_BACKENDS)\w+|HALFV_LLAMA_SOURCE"
    r"|CMAKE_(BUILD_TYPE|MAKE_PROGRAM|CUDA_ARCHITECTURES|(C|CXX|CUDA)_(COMPILER|FLAGS\w*))"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one that begins last would run alone."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def build_dir() -> Path:
    """The CMake build of the installed libraries: HALFV_BUILD_DIR, or build/py, where `make build` works."""
    folder = Path(os.environ.get("HALFV_BUILD_DIR", ROOT / "build" / "py")).resolve()
    if not (folder / "CMakeCache.txt").is_file():
        pytest.fail(f"{folder} is not a CMake build folder: run `make test`, or set HALFV_BUILD_DIR.")
    return folder


@pytest.fixture(scope="session", autouse=True)
def device(request: pytest.FixtureRequest) -> None:
    if pretend_device.asked_for():
        packed = (library.lib_dir() / pretend_device.FILE).exists()  # by scripts/gpu-proof
        pretend_device.use_everywhere(library.lib_dir() if packed else request.getfixturevalue("build_dir") / "bin")


@pytest.fixture(scope="session")
def cmake_cache(build_dir: Path) -> dict[str, str]:
    """The cached variables of that build."""
    text = (build_dir / "CMakeCache.txt").read_text()
    return {match[1]: match[2] for match in re.finditer(r"^([\w.-]+):\w+=(.*)$", text, re.MULTILINE)}


@pytest.fixture(scope="session")
def llama_tree(build_dir: Path) -> Path:
    """The patched llama.cpp source; its models/ has upstream's vocabularies."""
    return build_dir / "llama.cpp"


@pytest.fixture(scope="session")
def stock_lib_dir(root: Path, build_dir: Path, cmake_cache: dict[str, str]) -> Path:
    """The pinned llama.cpp without our patches, built once in build/stock."""
    stock = build_dir.parent / "stock"
    options = [f"-D{name}={value}" for name, value in cmake_cache.items() if SAME_OPTIONS.fullmatch(name) and value]
    cmake = cmake_cache["CMAKE_COMMAND"]
    configure = [cmake, "-S", root, "-B", stock, "-G", cmake_cache["CMAKE_GENERATOR"], "-DHALFV_STOCK=ON", *options]
    build(stock, configure, [cmake, "--build", stock, "--parallel"])
    return stock / "bin"


@pytest.fixture(scope="session")
def rpc_server(build_dir: Path, cmake_cache: dict[str, str]) -> Path:
    """ggml-rpc-server of that build."""
    program = build_dir / "bin" / ("ggml-rpc-server.exe" if os.name == "nt" else "ggml-rpc-server")
    if cmake_cache.get("GGML_RPC") != "ON":
        pytest.skip(f"{build_dir} was configured with GGML_RPC=OFF")
    if not program.is_file():
        pytest.fail(f"{program} is not built: build the target halfv-tests, as `make test` does.")
    return program


@pytest.fixture(scope="module")
def vlms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vlms]:
    with Vlms(tmp_path_factory.mktemp("vlm")) as made:
        yield made


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, vlms: Vlms) -> Model:
    """Each kind of tiny model in turn."""
    return vlms.load(request.param)
