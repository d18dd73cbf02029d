"""`halfv serve` starts llama-server with our model, encoder and profile, and says what it will do."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from halfv_convert import untrained_twig
from halfv_cpp import library

from halfv_edge.cli import serve
from halfv_edge.hub import demo
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.stored import read_gguf
from halfv_edge.server import llama_server
from halfv_edge.testing.server import RunningServer, about
from tests.support import ROOT
from tests.support.demo_server import post

TOTAL = about(ROOT / "examples" / "receipt.png", "What is the total?")
HALFV = [sys.executable, "-m", "halfv_edge"]
SMALL = ("-np", "1", "-c", "2048", "-t", "1", "--no-warmup")

pytestmark = pytest.mark.skipif(
    not (library.lib_dir() / llama_server.NAME).is_file(), reason="llama-server was not built (HALFV_SERVER=OFF)"
)


def halfv(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HALFV, *words], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def test_the_demo_model_answers() -> None:
    with RunningServer([*HALFV, "serve", *SMALL, "--alias", "receipts"]) as server:
        reply = server.ask(TOTAL, max_tokens=12)
        with urllib.request.urlopen(f"{server.url}/v1/models") as answer:
            models = json.load(answer)
        said = server.log()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0  # its own signals and exit code
    assert "79.00" in reply.text
    assert models["data"][0]["id"] == "receipts"  # its own flags reach it
    assert f"halfv: {server.url}  model.gguf" in said
    profile = read_gguf(ModelFile.read(demo.DEMO_FOLDER / demo.MODEL))
    assert profile is not None and reply.pictures is not None
    given = f"{100 * profile.input_keep:g}% of their tokens before the first layer"
    kept = f"{100 * profile.ivr_keep:g}% of those from layer {profile.ivr_layer} on"
    assert f"halfv: Pictures keep {given}, {kept} (profile: gguf)." in said
    assert reply.pictures["visual_kept"] == round(profile.ivr_keep * reply.pictures["visual_seen"])


def test_keep_reaches_the_library() -> None:
    with RunningServer([*HALFV, "serve", *SMALL, "--keep", "0.5"]) as server:
        assert "before the first layer, 50% of those from layer" in server.log()
        found = server.ask(TOTAL, max_tokens=1).pictures
    assert found is not None and found["visual_kept"] == round(0.5 * found["visual_seen"])


def test_a_twig_drafts(tmp_path: Path) -> None:
    """llama-server's own drafts, beside a picture that is pruned: the same answer."""
    path = tmp_path / "twig.gguf"
    untrained_twig(demo.DEMO_FOLDER / demo.MODEL, path)
    with RunningServer([*HALFV, "serve", *SMALL, "--draft", str(path)]) as server:
        status, answer = post(server, {"messages": TOTAL, "max_tokens": 12, "temperature": 0})
    assert status == 200
    timings = answer["timings"]
    assert answer["choices"][0]["message"]["content"] == "79.00"
    assert timings["draft_n"] > 0 and timings["halfv"]["visual_kept"] < timings["halfv"]["visual_seen"]


def test_a_profile_beside_a_twig_is_the_files(tmp_path: Path) -> None:
    """One from the environment would be the twig's too, which has fewer layers."""
    done = halfv("serve", "--keep", "0.5", "--draft", __file__)
    assert done.returncode == 2
    assert "model.gguf does not carry the profile that it is to run with" in done.stderr
    done = halfv("serve", "--profile", "off", "--draft", __file__)
    assert done.returncode == 2 and "set HALFV=off in the environment instead" in done.stderr
    done = halfv("serve", "--draft", str(tmp_path / "nothing.gguf"))
    assert done.returncode == 2 and "nothing.gguf does not exist" in done.stderr


def test_profile_off_runs_whole() -> None:
    with RunningServer([*HALFV, "serve", *SMALL, "--profile", "off"]) as server:
        assert "halfv: Nothing is pruned: the profile was switched off" in server.log()
        found = server.ask(TOTAL, max_tokens=1).pictures
    assert found is not None and found["visual_deep"] == found["visual_seen"] and found["not_pruned"]


def test_only_our_flags_are_taken() -> None:
    given = "-mg 0 -m a.gguf -md draft.gguf --keep=0.5 -np 4 --profile off --host 0.0.0.0 --mmproj-offload -hf x/y"
    ours, rest = serve.split(given.split(" "))
    assert " ".join(ours) == "-m a.gguf --keep=0.5 --profile off"
    assert " ".join(rest) == "-mg 0 -md draft.gguf -np 4 --host 0.0.0.0 --mmproj-offload -hf x/y"


@pytest.mark.parametrize(
    ("flags", "address", "local", "key"),
    [
        ("", "http://127.0.0.1:8080", True, False),
        ("--port 9 --port 80 --host 0.0.0.0 --api-key x", "http://0.0.0.0:80", False, True),
        ("--host ::1 --ssl-key-file k", "https://[::1]:8080", True, False),
        ("--host /tmp/x.sock", "unix:/tmp/x.sock", True, False),
    ],
)
def test_address(flags: str, address: str, local: bool, key: bool) -> None:
    words = flags.split()
    found = (llama_server.address(words, {}), llama_server.is_local(words, {}), llama_server.has_key(words, {}))
    assert found == (address, local, key)


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    for words, said in (
        (["-m", "nothing.gguf"], "nothing.gguf does not exist"),
        (["--keep", "7"], "--keep 7 is not valid"),
        (["-m", demo.DEMO_FOLDER / demo.MMPROJ], "is a vision encoder"),
    ):
        done = halfv("serve", *words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "") and said in done.stderr and done.stderr.count("\n") == 1


#
# doctor
#


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = halfv("serve", "--port", str(port))
    assert found.returncode == 2
    assert found.stderr == f"halfv: Port {port} of 127.0.0.1 is taken by another program: choose one with --port.\n"
    for flags in (["--port", str(port)], ["--port", "70000"], ["--port", "x"], ["--host", "no such host"]):
        llama_server.check_free(flags, {})


def test_doctor() -> None:
    done = halfv("doctor")
    assert done.returncode == 0 and done.stderr == ""
    assert "pruning    yes" in done.stdout and "(qwen2vl, " in done.stdout and "\nserver     " in done.stdout
    found = json.loads(halfv("doctor", "--json").stdout)
    assert found["problems"] == [] and found["model"]["prunes"] and found["build"]["patched"]
    assert found["model"]["profile_source"] == "gguf" and found["model"]["projector"].startswith("qwen")


def test_doctor_says_why_nothing_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(halfv("doctor", "--json", "--profile", "off").stdout)
    assert (found["model"]["prunes"], found["model"]["not_pruned"]) == (False, "the profile was switched off (off)")
    monkeypatch.setenv("HALFV", "off")
    done = halfv("doctor")
    assert "pruning    no: HALFV=off is set in the environment" in done.stdout and "set        HALFV=off" in done.stdout


def test_doctor_of_something_broken(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((demo.DEMO_FOLDER / demo.MODEL).read_bytes()[:1000])
    done = halfv("doctor", "-m", broken)
    assert done.returncode == 1 and f"problem    {broken}" in done.stdout and "backends" in done.stdout
