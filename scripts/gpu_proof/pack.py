"""Stripped libraries, our packages and the tests of GPUs, in an archive that needs neither pip nor a compiler."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

from gpu_proof.place import ROOT, ProofError

# what the machine brings: the C library, its compiler's, the driver and CUDA's own libraries
OUTSIDE = re.compile(
    r"ld-linux|linux-vdso|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|cuda|cudart|cublas|cublasLt|vulkan)\.so"
)
OURS = ("libllama.so", "libmtmd.so")
BESIDE = ("libtrace-ggml.so", "libdevice-errors.so", "libpretend-device.so")  # where they are built
TESTS = ("__init__.py", "conftest.py", "gpu", "support", "native/test_identity.py")


def pack(args: argparse.Namespace) -> None:
    for folder in (args.build, args.stock):
        if not (folder / "bin" / "libllama.so").exists():
            raise ProofError(f"{folder} holds no bin/libllama.so: build the target halfv there (docs/gpu-proof.md).")
    with tempfile.TemporaryDirectory() as made:
        proof = Path(made) / "gpu-proof"
        lay_out(args.build, args.stock, proof)
        args.out.mkdir(parents=True, exist_ok=True)
        archive = args.out / "gpu-proof.tar.xz"
        with tarfile.open(archive, "w:xz", preset=6) as out:
            out.add(proof, "gpu-proof")
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB", file=sys.stderr)


def lay_out(build: Path, stock: Path, proof: Path) -> None:
    """The archive as a folder."""
    _copy_libraries(build / "bin", stock / "bin", proof)
    _copy_python(proof)
    sizes = {path.name: path.stat().st_size for path in (proof / "lib").iterdir() if not path.is_symlink()}
    (proof / "pack.json").write_text(json.dumps({"bytes": sizes, "cuda": _cuda(build)}, indent=2))


def _copy_libraries(build: Path, stock: Path, proof: Path) -> None:
    """ggml once where it has one name: patches do not touch it, an unpatched libllama can lie beside the same."""
    lib = proof / "lib"
    lib.mkdir(parents=True)
    (proof / "stock").mkdir()
    for path in sorted(path for pattern in ("libggml*.so", *OURS, *BESIDE) for path in build.glob(pattern)):
        _copy_library(path, lib)
    for name in OURS:
        _copy_library(stock / name, proof / "stock")
    for path in sorted(stock.glob("libggml*.so")):
        if (lib / _soname(path)).exists():
            for name in {_soname(path), path.name}:
                (proof / "stock" / name).symlink_to(Path("..") / "lib" / name)
        else:
            _copy_library(path, proof / "stock")
    shutil.copy(build / "build.json", lib)
    for path in [*lib.glob("*.so"), *(proof / "stock").glob("*.so")]:
        for name, found in _needs(path):
            if found is None or not (OUTSIDE.match(name) or found.is_relative_to(proof)):
                if found is None or not name.startswith("libgomp"):
                    raise ProofError(f"{path.name} needs {name}, which is neither packed nor on every machine.")
                shutil.copy(found, lib / name)
                if not (proof / "stock" / name).exists():
                    (proof / "stock" / name).symlink_to(Path("../lib") / name)


def _copy_library(path: Path, folder: Path) -> None:
    """Under the name that the others know it by; the plain one leads there."""
    name = _soname(path)
    shutil.copy(path.resolve(), folder / name)
    subprocess.run(["strip", "--strip-unneeded", folder / name], check=True)
    if name != path.name:
        (folder / path.name).symlink_to(name)


def _soname(path: Path) -> str:
    said = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"SONAME.*\[(.*)\]", said)
    return found[1] if found else path.name


def _needs(path: Path) -> list[tuple[str, Path | None]]:
    said = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    found = []
    for line in said.splitlines():
        name, arrow, place = line.strip().partition(" => ")
        if arrow and not OUTSIDE.match(name):
            found.append((name, None if "not found" in place else Path(place.split(" (")[0]).absolute()))
    return found


def _copy_python(proof: Path) -> None:
    python = proof / "python"
    junk = shutil.ignore_patterns("__pycache__", "*.gguf", "lib", "include")
    shutil.copytree(ROOT / "halfv_edge", python / "halfv_edge", ignore=junk)
    shutil.copytree(ROOT / "bindings" / "halfv_cpp", python / "halfv_cpp", ignore=junk)
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    info = python / f"halfv_edge-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: halfv-edge\nVersion: {version}\n")
    files = metadata.files("gguf")
    if not files:
        raise ProofError("gguf is not installed here: pip install gguf.")
    for file in files:
        if file.parts[0].startswith("gguf") and file.suffix != ".pyc":
            (python / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), python / file)
    for name in TESTS:
        source, target = ROOT / "tests" / name, proof / "tests" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copy if source.is_file() else lambda a, b: shutil.copytree(a, b, ignore=junk))(source, target)
    for name in ("scripts/gpu-proof", "scripts/gpu_proof", "pyproject.toml"):
        source, target = ROOT / name, proof / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copy if source.is_file() else lambda a, b: shutil.copytree(a, b, ignore=junk))(source, target)


def _cuda(build: Path) -> dict[str, str]:
    """How it was compiled."""
    text = (build / "CMakeCache.txt").read_text()
    wanted = "CMAKE_CUDA_ARCHITECTURES|CMAKE_CUDA_COMPILER|GGML_NATIVE|GGML_CUDA|GGML_CUDA_F16"
    return dict(re.findall(rf"^({wanted}):\w+=(.*)$", text, re.MULTILINE))
