"""Models from Hugging Face, through huggingface_hub and a server of our own."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from halfv_edge.cli.main import main
from halfv_edge.hub.find import choose, parts
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.vlm import PROFILE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ANSWER = ("chat", "-p", "what is it", "--max-tokens", "2", "--threads", "1", "--json")


class Server(http.server.ThreadingHTTPServer):
    """As much of the hub as a download needs: the files of one repository, and how often each was fetched."""

    def __init__(self, repo: str, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repo = repo
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.fetched: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        name = path.removeprefix(f"{self.server.repo}/resolve/main/")
        if path.startswith(f"api/models/{self.server.repo}"):
            files = [{"rfilename": name} for name in self.server.files]
            self.reply(200, json.dumps({"id": self.server.repo, "sha": COMMIT, "siblings": files}).encode())
        elif name in self.server.files:
            raw = self.server.files[name]
            if self.command == "GET":
                self.server.fetched.append(name)
            self.reply(200, raw, {"ETag": f'"{hashlib.sha256(raw).hexdigest()}"', "X-Repo-Commit": COMMIT})
        elif path.startswith("api/models/gated/"):
            self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def reply(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("repo")
    for seed, type_ in enumerate(("Q8_0", "Q4_K_M", "BF16-00002-of-00002", "BF16-00001-of-00002")):
        make_tiny(folder / f"Tiny-{type_}.gguf", "qwen3vl", seed=seed, profile=PROFILE)
    for type_ in ("Q8_0", "F16"):
        make_tiny_mmproj(folder / f"mmproj-Tiny-{type_}.gguf", "qwen2vl", n_embd=192)
    with Server("Qwen/Qwen3-VL-2B-Instruct-GGUF", folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def halfv(server: Server, home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    address = f"http://127.0.0.1:{server.server_port}"
    env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home), "NO_PROXY": "*", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run([sys.executable, "-m", "halfv_edge", *args], capture_output=True, text=True, env=env)


def test_downloaded_once(server: Server, tmp_path: Path) -> None:
    done = halfv(server, tmp_path, *ANSWER, "-m", "qwen3-vl-2b")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["model"]
    assert Path(found["path"]).name == "Tiny-Q4_K_M.gguf" and Path(found["mmproj"]).name == "mmproj-Tiny-F16.gguf"
    assert tmp_path in Path(found["path"]).parents
    assert sorted(server.fetched) == ["Tiny-Q4_K_M.gguf", "mmproj-Tiny-F16.gguf"]

    again = halfv(server, tmp_path, *ANSWER, "--hf", server.repo)
    assert json.loads(again.stdout)["model"] == found and len(server.fetched) == 2

    port, server.server_port = server.server_port, 9  # nobody answers there
    try:
        offline = halfv(server, tmp_path, *ANSWER, "--hf", server.repo)
        assert json.loads(offline.stdout)["model"] == found
        other = halfv(server, tmp_path, *ANSWER, "--hf", "nobody/nothing")
        assert other.returncode == 2
        assert other.stderr.splitlines()[-1].startswith("halfv: nobody/nothing cannot be downloaded: ")
    finally:
        server.server_port = port


def test_what_the_hub_does_not_have(server: Server, tmp_path: Path) -> None:
    done = halfv(server, tmp_path, *ANSWER, "--hf", f"{server.repo}:q3_k")
    assert done.returncode == 2
    there = "Tiny-BF16-00001-of-00002.gguf, Tiny-Q4_K_M.gguf, Tiny-Q8_0.gguf"
    assert done.stderr == f"halfv: {server.repo} has no q3_k: there is {there}.\n"
    done = halfv(server, tmp_path, *ANSWER, "--hf", "nobody/nothing")
    assert done.returncode == 2
    assert "halfv: nobody/nothing is not on Hugging Face, or is private: check the name" in done.stderr
    done = halfv(server, tmp_path, *ANSWER, "--hf", "gated/model")
    assert done.returncode == 2
    assert "halfv: gated/model asks for an agreement first: accept it on its page" in done.stderr


def test_without_the_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main([*ANSWER, "--hf", "a/b"]) == 2
    assert capsys.readouterr().err.startswith(
        "halfv: Downloading needs the package huggingface_hub: `pip install huggingface_hub`"
    )


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "mmproj-m-Q4_K_M.gguf"], None, "m-Q4_K_M.gguf"),
        (["m-Q8_0.gguf", "m-Q6_K.gguf"], None, "m-Q8_0.gguf"),
        (["m-IQ2_M.gguf", "m-IQ1_S.gguf"], None, "m-IQ2_M.gguf"),
        (["m-Q4_K_M.gguf", "m-Q4_K.gguf"], "q4_k", "m-Q4_K.gguf"),
        (["m-IQ4_XS.gguf", "m.f16.gguf", "m-BF16.gguf"], "F16", "m.f16.gguf"),
        (["ggml-model-q5_k.gguf", "mmproj-model-f16.gguf"], None, "ggml-model-q5_k.gguf"),
        (
            ["Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf"],
            "q8_0",
            "Q8_0/m-Q8_0-00001-of-00002.gguf",
        ),
    ],
)
def test_choice(names: list[str], wanted: str | None, chosen: str) -> None:
    assert choose("a/b", names, wanted) == chosen


def test_all_parts() -> None:
    names = [
        "m-Q8_0-00001-of-00003.gguf",
        "m-Q8_0-00002-of-00003.gguf",
        "m-Q8_0-00003-of-00003.gguf",
        "n-00002-of-00003.gguf",
    ]
    assert list(parts(names[0], names)) == names[:3]
    assert list(parts("m.gguf", [*names, "m.gguf"])) == ["m.gguf"]
