"""pip installs from what scripts/wheel-index.py makes, served as static files on loopback."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NAME = "halfv_edge-9.8.7-py3-none-any.whl"


def write_wheel(folder: Path, requires: str = ">=3.10", name: str = NAME) -> Path:
    """A wheel of one module."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "halfv_edge-9.8.7.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: halfv-edge\nVersion: 9.8.7\nRequires-Python: {requires}\n"
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("of_the_index.py", "ANSWER = 42\n")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return folder / name


def make_index(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "wheel-index.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and its address."""
    folder = tmp_path / "site"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def install(address: str, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--no-cache-dir"]
    command += ["--no-deps", "--index-url", address, "--target", str(target), "halfv-edge"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_pip_installs_from_each_backends_index(root: Path, tmp_path: Path, served: tuple[Path, str]) -> None:
    site, address = served
    for backend in ("cpu", "vulkan"):
        write_wheel(tmp_path / backend)
    done = make_index(root, str(site / "whl"), f"cpu={tmp_path / 'cpu'}", f"vulkan={tmp_path / 'vulkan'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "2 wheels" in done.stderr
    done = install(f"{address}/whl/vulkan/", tmp_path / "installed")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "installed" / "of_the_index.py").read_text() == "ANSWER = 42\n"


def test_a_wheel_that_was_changed_on_the_host_is_refused(root: Path, tmp_path: Path, served: tuple[Path, str]) -> None:
    site, address = served
    write_wheel(tmp_path / "cpu")
    assert make_index(root, str(site / "whl"), f"cpu={tmp_path / 'cpu'}").returncode == 0
    with (site / "whl/cpu/halfv-edge" / NAME).open("ab") as file:
        file.write(b"more")
    done = install(f"{address}/whl/cpu/", tmp_path / "installed")
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_a_python_that_is_too_old_is_not_offered_the_wheel(
    root: Path, tmp_path: Path, served: tuple[Path, str]
) -> None:
    site, address = served
    write_wheel(tmp_path / "cpu", requires=">=99.0")
    assert make_index(root, str(site / "whl"), f"cpu={tmp_path / 'cpu'}").returncode == 0
    done = install(f"{address}/whl/cpu/", tmp_path / "installed")
    assert done.returncode != 0
    assert "No matching distribution" in done.stderr


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: folder.mkdir(), "holds no wheels: build them with `make wheel`."),
        (lambda folder: write_wheel(folder, name="other.whl"), "other.whl is not named as a wheel is."),
        (lambda folder: write_wheel(folder).write_bytes(b"no archive"), "is no wheel: "),
    ],
)
def test_what_no_index_should_offer_leaves_the_old_index_alone(root: Path, tmp_path: Path, make, sentence: str) -> None:
    write_wheel(tmp_path / "good")
    assert make_index(root, str(tmp_path / "whl"), f"cpu={tmp_path / 'good'}").returncode == 0
    before = sorted(tmp_path.rglob("whl/**/*"))
    make(tmp_path / "bad")
    done = make_index(root, str(tmp_path / "whl"), f"cpu={tmp_path / 'bad'}")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert sorted(tmp_path.rglob("whl/**/*")) == before
    assert not list(tmp_path.glob(".whl-*"))


def test_a_backend_without_a_name_is_a_sentence(root: Path, tmp_path: Path) -> None:
    done = make_index(root, str(tmp_path / "whl"), "dist/cpu")
    assert done.returncode == 2
    assert done.stderr == "wheel-index: 'dist/cpu' is not valid: it must be like cpu=dist/cpu.\n"
