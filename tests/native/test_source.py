"""Getting and patching the llama.cpp source: exact, and one sentence when it cannot be done.

The CMake functions run in script mode, against a made-up source tree and a made-up pip.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE_FILES = {
    "src/llama-context.cpp": "one\ntwo\nthree\n",
    "src/llama-graph.cpp": "four\nfive\nsix\n",
    "ggml/CMakeLists.txt": "project(ggml)\n",
    ".git": "gitdir: ../elsewhere\n",
}
PATCH = """\
--- a/src/llama-context.cpp
+++ b/src/llama-context.cpp
@@ -1,3 +1,4 @@
 one
 two
+two and a half
 three
"""
NEW_FILE_PATCH = """\
--- /dev/null
+++ b/src/new.cpp
@@ -0,0 +1 @@
+new
"""


@pytest.fixture(scope="session")
def run_cmake(root: Path, cmake_cache: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(folder: Path, code: str, **settings: object) -> subprocess.CompletedProcess[str]:
        script = folder / "script.cmake"
        lines = [f'include("{root}/cmake/{name}.cmake")' for name in ("pin", "source", "patch")]
        lines += [f'set({name} "{value}")' for name, value in settings.items()]
        script.write_text("\n".join([*lines, code]) + "\n")
        command = [cmake_cache["CMAKE_COMMAND"], "-P", script]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)

    return run


def one_line(text: str) -> str:
    return " ".join(text.split())


def make_source(folder: Path) -> Path:
    for name, text in SOURCE_FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def make_sdist(path: Path, version: str) -> str:
    """A tarball like the pinned one; returns its sha256."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in SOURCE_FILES.items():
            member = tarfile.TarInfo(f"llama_cpp_python-{version}/vendor/llama.cpp/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_pip(folder: Path, action: str) -> Path:
    """A stand-in for Python whose `-m pip download ... --dest DIR PACKAGE` runs a line of shell in DIR."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nwhile [ "$1" != --dest ]; do shift; done\ncd "$2"\n{action}\n')
    path.chmod(0o755)
    return path


FETCH = "halfv_fetch_source(dir)\nmessage(STATUS DIR=${dir})"


def test_fetches_once_and_keeps_only_the_tree(tmp_path: Path, run_cmake: Callable) -> None:
    sdist = tmp_path / "sdist.tar.gz"
    sha256 = make_sdist(sdist, "9.9.9")
    calls = tmp_path / "calls"
    settings = {
        "HALFV_PYTHON": make_pip(tmp_path, f"cp {sdist} llama_cpp_python-9.9.9.tar.gz; echo called >> {calls}"),
        "HALFV_CACHE": tmp_path / "cache",
        "HALFV_PIN_VERSION": "9.9.9",
        "HALFV_PIN_SHA256": sha256,
        "HALFV_UNPACK": "src;ggml",
    }
    for _ in range(2):
        done = run_cmake(tmp_path, FETCH, **settings)
        assert done.returncode == 0, done.stderr
    (tree,) = (tmp_path / "cache").iterdir()
    assert f"DIR={tree}" in done.stdout
    assert (tree / "src/llama-context.cpp").read_text() == "one\ntwo\nthree\n"
    assert not (tree / ".git").exists()
    assert calls.read_text() == "called\n"


def test_wrong_hash(tmp_path: Path, run_cmake: Callable) -> None:
    sdist = tmp_path / "sdist.tar.gz"
    sha256 = make_sdist(sdist, "9.9.9")
    pip = make_pip(tmp_path, f"cp {sdist} llama_cpp_python-9.9.9.tar.gz")
    done = run_cmake(
        tmp_path,
        FETCH,
        HALFV_PYTHON=pip,
        HALFV_CACHE=tmp_path / "cache",
        HALFV_PIN_VERSION="9.9.9",
        HALFV_PIN_SHA256="0" * 64,
    )
    assert done.returncode != 0
    said = f"The downloaded llama-cpp-python 9.9.9 has sha256 {sha256}, expected {'0' * 64}: it was deleted"
    assert said in one_line(done.stderr)
    assert list((tmp_path / "cache").iterdir()) == []


def test_sdist_without_the_tree(tmp_path: Path, run_cmake: Callable) -> None:
    sdist = tmp_path / "sdist.tar.gz"
    sha256 = make_sdist(sdist, "9.9.9")
    done = run_cmake(
        tmp_path,
        FETCH,
        HALFV_PYTHON=make_pip(tmp_path, f"cp {sdist} llama_cpp_python-9.9.9.tar.gz"),
        HALFV_CACHE=tmp_path / "cache",
        HALFV_PIN_VERSION="9.9.9",
        HALFV_PIN_SHA256=sha256,
        HALFV_UNPACK="src;no-such-folder",
    )
    assert done.returncode != 0
    assert "The llama-cpp-python 9.9.9 sdist could not be unpacked" in one_line(done.stderr)
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_network(tmp_path: Path, run_cmake: Callable) -> None:
    pip = make_pip(tmp_path, "echo half > llama_cpp_python-0.tar.gz; echo no route to host >&2; exit 7")
    done = run_cmake(tmp_path, FETCH, HALFV_PYTHON=pip, HALFV_CACHE=tmp_path / "cache")
    assert done.returncode != 0
    said = one_line(done.stderr)
    assert "pip could not download llama-cpp-python" in said
    assert "-DHALFV_LLAMA_SOURCE=DIR" in said
    assert "no route to host" in said
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("inside", ["", "vendor/llama.cpp"], ids=["tree", "sdist"])
def test_given_source(inside: str, tmp_path: Path, run_cmake: Callable) -> None:
    tree = make_source(tmp_path / "given" / inside)
    done = run_cmake(tmp_path, FETCH, HALFV_LLAMA_SOURCE=tmp_path / "given")
    assert f"DIR={tree}" in done.stdout


def test_given_source_is_something_else(tmp_path: Path, run_cmake: Callable) -> None:
    done = run_cmake(tmp_path, FETCH, HALFV_LLAMA_SOURCE=tmp_path)
    assert done.returncode != 0
    assert f"HALFV_LLAMA_SOURCE={tmp_path} is neither a llama.cpp tree nor an unpacked" in one_line(done.stderr)


class Tree:
    """A source and what halfv_patch_tree makes of it."""

    def __init__(self, folder: Path, run_cmake: Callable):
        self.folder, self.run_cmake = folder, run_cmake
        self.pristine = make_source(folder / "pristine")
        self.path = folder / "build" / "llama.cpp"

    def patch(self, *patches: str) -> subprocess.CompletedProcess[str]:
        names = []
        for number, text in enumerate(patches):
            names.append(self.folder / f"{number}.patch")
            names[-1].write_text(text)
        files = " ".join(f'"{name}"' for name in names)
        return self.run_cmake(self.folder, f'halfv_patch_tree("{self.pristine}" "{self.path}" {files})')

    def read(self, name: str) -> str:
        return (self.path / name).read_text()

    def times(self) -> dict[str, float]:
        files = [path for path in self.path.rglob("[!.]*") if path.is_file()]
        return {str(path.relative_to(self.path)): path.stat().st_mtime for path in files}


@pytest.fixture
def tree(tmp_path: Path, run_cmake: Callable) -> Tree:
    return Tree(tmp_path, run_cmake)


def test_no_patches(tree: Tree) -> None:
    assert tree.patch().returncode == 0
    assert tree.read("src/llama-context.cpp") == "one\ntwo\nthree\n"
    assert not (tree.path / ".git").exists()


def test_patches_change_only_the_copy(tree: Tree) -> None:
    assert tree.patch(PATCH, NEW_FILE_PATCH).returncode == 0
    assert tree.read("src/llama-context.cpp") == "one\ntwo\ntwo and a half\nthree\n"
    assert tree.read("src/new.cpp") == "new\n"
    assert (tree.pristine / "src/llama-context.cpp").read_text() == "one\ntwo\nthree\n"


def test_only_changed_files_get_a_new_time(tree: Tree) -> None:
    tree.patch(PATCH, NEW_FILE_PATCH)
    before = tree.times()
    time.sleep(0.05)
    tree.patch(PATCH.replace("half", "third"), NEW_FILE_PATCH)
    after = tree.times()
    assert tree.read("src/llama-context.cpp") == "one\ntwo\ntwo and a third\nthree\n"
    assert {name for name in after if after[name] != before.get(name)} == {"src/llama-context.cpp"}
    assert after["src/llama-context.cpp"] > before["src/llama-context.cpp"]


def test_removed_patch_is_undone(tree: Tree) -> None:
    tree.patch(PATCH, NEW_FILE_PATCH)
    before = tree.times()
    time.sleep(0.05)
    tree.patch()
    assert tree.read("src/llama-context.cpp") == "one\ntwo\nthree\n"
    assert not (tree.path / "src/new.cpp").exists()
    # Newer than the object that was compiled from the patched file, or it would not be compiled again.
    assert tree.times()["src/llama-context.cpp"] > before["src/llama-context.cpp"]


def test_other_source_counts_as_new(tree: Tree) -> None:
    tree.patch(PATCH)
    before = tree.times()
    shutil.move(tree.pristine, tree.folder / "moved")
    tree.pristine = tree.folder / "moved"
    os.utime(tree.pristine / "src/llama-graph.cpp", (0, 0))
    tree.patch(PATCH)
    assert tree.times()["src/llama-graph.cpp"] > before["src/llama-graph.cpp"]
    assert tree.read("src/llama-context.cpp") == "one\ntwo\ntwo and a half\nthree\n"


@pytest.mark.parametrize("bad", [PATCH.replace(" one", " eno"), "no patch at all\n"], ids=["context", "garbage"])
def test_patch_that_does_not_apply(bad: str, tree: Tree) -> None:
    tree.patch(PATCH)
    before = tree.times()
    done = tree.patch(PATCH, bad)
    assert done.returncode != 0
    assert "The patch 1.patch does not apply to llama.cpp" in one_line(done.stderr)
    assert tree.read("src/llama-context.cpp") == "one\ntwo\ntwo and a half\nthree\n"
    assert tree.times() == before
    assert [path.name for path in tree.path.parent.iterdir()] == ["llama.cpp"]


def test_our_patches_apply_without_offset(root: Path, llama_tree: Path, tmp_path: Path) -> None:
    """Every hunk lies where its patch says: nothing was guessed."""
    pristine = Path((llama_tree / ".halfv-pristine").read_text())
    patches = sorted((root / "native" / "patches").glob("*.patch"))
    assert patches
    for name in (llama_tree / ".halfv-files").read_text().split("\n"):
        if (pristine / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pristine / name, tmp_path / name)
    for patch in patches:
        command = ["git", "apply", "--verbose", patch]
        env = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        assert "offset" not in done.stderr, done.stderr
