"""`halfv chat` and `halfv tokens` from end to end: real files, tiny random models and pipes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from halfv_edge.cli import chat as cli_chat
from halfv_edge.cli import tokens as cli_tokens
from halfv_edge.cli.main import main
from halfv_edge.engine import twig
from halfv_edge.engine.context import Context
from halfv_edge.engine.model import Model
from halfv_edge.errors import RunError
from halfv_edge.hub.find import KNOWN
from halfv_edge.hub.known import MODELS
from halfv_edge.measure.bench.shapes import SHAPES
from halfv_edge.profile import model_file, stored
from halfv_edge.profile.presets import PRESETS
from tests.support import limited
from tests.support.building import build
from tests.support.chat_command import ARCHS, chat, program
from tests.support.vlm import QUESTION

N_TOKENS = 24
N_TRIES = 6  # llama-mtmd-cli prints in a thread that it does not wait for at its end, so the last words can be missing
SPECIAL = rb"<\|\w+\|>|<s>|<unk>"  # tokens that it prints too


#
# one answer
#


def test_the_answer_alone_on_stdout(place: Path) -> None:
    with Model.load(place / "llava" / "m.gguf", n_threads=1) as model, model.chat(mode="exact") as alone:
        wanted = alone.answer(QUESTION, [place / "cat.jpg"], max_tokens=N_TOKENS, temperature=0)
    done = chat(place, "cat.jpg", "-p", QUESTION, "--temp", "0", "--max-tokens", str(N_TOKENS))
    assert (done.returncode, done.stdout) == (0, wanted + "\n")
    line = (
        r"first token \S+ m?s \(encoder \S+ m?s, prefill \S+ m?s, selection \S+ m?s\) \| 100 -> 50 -> 10 visual tokens"
    )
    assert re.fullmatch(line + r" \| \S+ tokens/s \| unpruned: prefill ~\S+ m?s\n", done.stderr)
    again = chat(place, "cat.jpg", "-p", "-", "--temp", "0", "--max-tokens", str(N_TOKENS), stdin=QUESTION + "\n")
    assert again.stdout == done.stdout


def test_json(place: Path) -> None:
    args = ("cat.jpg", "dog.png", "-p", QUESTION, "--seed", "1", "--max-tokens", "8", "--json")
    done = chat(place, *args, "--prepare", "--keep", "0.3")
    found = json.loads(done.stdout)
    assert found["model"]["mode"] == "prepare"
    assert (found["model"]["path"], found["model"]["mmproj"]) == ("llava/m.gguf", "llava/mmproj-m.gguf")
    assert found["model"]["profile"]["ivr"] == {"layer": 2, "keep": 0.3, "anchors": 0.2}
    sizes = [(image["name"], image["width"], image["height"]) for image in found["images"]]
    assert sizes == [("cat.jpg", 420, 300), ("dog.png", 200, 300)]
    assert [(image["n_visual"], image["n_kept"], image["n_deep"]) for image in found["images"]] == [(100, 30, 10)] * 2
    assert found["stats"]["n_generated"] <= 8 and found["stats"]["ahead_sec"] > 0
    assert found["not_pruned"] is None and done.returncode == 0 and done.stderr == ""
    exact = json.loads(chat(place, *args).stdout)
    assert exact["model"]["mode"] == "exact" and exact["stats"]["ahead_sec"] == 0


def test_a_draft(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(twig, "LEAST_LIKELY", 0.0)  # random models are never sure of anything
    assert main(["twig", "llava/m.gguf", "--untrained", "3", "-o", "twig.gguf"]) == 0
    capsys.readouterr()
    command = ["chat", "-m", "llava/m.gguf", "--threads", "1", "cat.jpg", "-p", QUESTION, "--max-tokens", "9", "--json"]
    found = []
    for draft in ([], ["--draft", "twig.gguf"]):
        assert main([*command, "--temp", "0", *draft]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["answer"] == found[1]["answer"]
    assert found[0]["stats"]["n_drafted"] == 0 < found[1]["stats"]["n_drafted"]
    assert main([*command, "--draft", "llava/m.gguf"]) == 2
    assert "m.gguf is not a twig, as it has no twig.layer: `halfv twig` makes one." in capsys.readouterr().err


def test_answers_of_a_form(place: Path) -> None:
    done = chat(place, "cat.jpg", "-p", QUESTION, "--json-schema", "schema.json", "--temp", "0")
    assert list(json.loads(done.stdout)) == ["n"]
    done = chat(place, "cat.jpg", "-p", QUESTION, "--grammar", "escape.gbnf", "--system", "Be short.")
    assert done.stdout == "cat\x1b]0;dog\n"


@pytest.mark.parametrize(
    ("args", "env", "why"),
    [
        (("--profile", "off"), {}, "100 visual tokens, not pruned: --profile off"),
        (("--keep", "0.3"), {"HALFV": "off"}, "100 visual tokens, not pruned: HALFV=off is set in the environment"),
        (("--profile", "big.json"), {}, "not pruned: the profile leaves pictures of fewer than 500 tokens whole"),
        (("--profile", "whole.json"), {}, "not pruned: the profile keeps everything"),
        (
            ("--image-max-tokens", "20"),
            {},
            "--image-max-tokens 20 has no effect: this encoder gives a picture 100 tokens.",
        ),
        (("--gpu-layers", "3"), {"HALFV": "off"}, "--gpu-layers 3 has no effect: these libraries see no GPU"),
    ],
)
def test_what_has_no_effect_is_said(
    args: tuple[str, ...], env: dict[str, str], why: str, place: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stages = {"ivr": {"layer": 2, "keep": 0.5, "anchors": 0.2}, "ssr": {"layer": 4, "update": 0.1, "rest": "dropped"}}
    (place / "big.json").write_text(json.dumps(stages | {"version": 1, "min_visual_tokens": 500}))
    stages["ivr"]["keep"] = stages["ssr"]["update"] = 1.0
    (place / "whole.json").write_text(json.dumps(stages | {"version": 1}))
    monkeypatch.chdir(place)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    command = ["chat", "-m", "llava/m.gguf", "--threads", "1", "cat.jpg", "-p", QUESTION, "--max-tokens", "1", *args]
    assert main(command) == 0
    assert why in capsys.readouterr().err


def endless(place: Path) -> subprocess.Popen[bytes]:
    command = program("chat", "-m", "llava/m.gguf", "--threads", "1", "cat.jpg", "-p", QUESTION)
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, "--grammar", "endless.gbnf"], cwd=place, stdout=pipe, stderr=pipe)


def test_interrupted(place: Path) -> None:
    with endless(place) as process:
        assert process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest, talk = process.communicate(timeout=30)
    assert (process.returncode, talk) == (130, b"halfv: interrupted.\n")
    assert rest.endswith(b"\n")


def test_a_reader_that_has_enough(place: Path) -> None:
    with endless(place) as process:
        assert process.stdout.read(20)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


#
# the same model in llama.cpp's own program
#


@pytest.fixture(scope="module")
def mtmd_cli(build_dir: Path, cmake_cache: dict[str, str]) -> Path:
    build(build_dir, [cmake_cache["CMAKE_COMMAND"], "--build", build_dir, "--parallel", "--target", "llama-mtmd-cli"])
    return build_dir / "bin" / "llama-mtmd-cli"


def ask_mtmd_cli(mtmd_cli: Path, place: Path, kind: str, **env: str) -> str:
    files = ("-m", f"{kind}/m.gguf", "--mmproj", f"{kind}/mmproj-m.gguf", "--image", "cat.png")
    command = [mtmd_cli, *files, "-p", QUESTION, "-n", str(N_TOKENS), "--temp", "0", "-t", "1"]
    done = subprocess.run(command, cwd=place, capture_output=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr[-2000:]
    return re.sub(SPECIAL, b"", done.stdout).decode("utf-8", "replace").strip("\n")


@pytest.mark.parametrize("kind", ARCHS)
def test_same_answer_as_llama_mtmd_cli(
    kind: str, mtmd_cli: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows nothing of HalfV: our libraries prune in it by the file or HALFV_PROFILE, and not when HALFV=off."""
    monkeypatch.chdir(place)
    answers = []
    other = stored.read_gguf(model_file.ModelFile.read(f"{kind}/m.gguf"))
    other = dataclasses.replace(other, ivr_keep=other.ivr_keep / 4, ssr_update=0)
    for env in ({}, {"HALFV": "off"}, {"HALFV_PROFILE": json.dumps(other.to_json())}):
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            run = ["chat", "-m", f"{kind}/m.gguf", "cat.png", "-p", QUESTION, "--temp", "0", "--threads", "1"]
            assert main([*run, "--max-tokens", str(N_TOKENS)]) == 0
        answers.append(capsys.readouterr().out.strip("\n"))
        assert len(answers[-1]) > 10
        assert answers[-1] in (ask_mtmd_cli(mtmd_cli, place, kind, **env) for _ in range(N_TRIES))
    assert len(set(answers)) == 3


#
# mistakes
#

MISTAKES = {
    # in pictures
    "nope.jpg": "nope.jpg does not exist: check the name and the folder.",
    ".": ". is a folder: name the image in it.",
    "words.txt": "words.txt is not an image that can be read: give PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF.",
    "cut.jpg": "cut.jpg is cut short or damaged (* bytes not processed)): get it again.",
    "bomb.png": "bomb.png is too large to decode safely: scale it down to at most 100 million pixels.",
    "zero.png": "zero.png is empty: it has 0 bytes.",
    "cat.jpg dog.png cat.jpg --ctx 256": "* needs a context of * tokens, and this one has 256: load with *",
    # in models
    "-m nope.gguf": "nope.gguf does not exist: check the name and the folder, or choose one of `halfv chat "
    "--list-models`.",
    "-m qwen2.5-vl-3": "qwen2.5-vl-3 does not exist: did you mean -m qwen2.5-vl-3b.",
    "-m a/b": "a/b does not exist: a Hugging Face repository is given with --hf a/b.",
    "-m cat.jpg": "cat.jpg is not a GGUF file: it begins with *",
    "-m cut.gguf": "cut.gguf is cut short or damaged: it ends at byte 200, *; get it again.",
    "-m alone/m.gguf": "There is no vision encoder beside alone/m.gguf: put the model's mmproj GGUF into its folder, "
    "or name it with --mmproj (a model for text alone has none).",
    "-m alone/m.gguf --mmproj wide.gguf": "wide.gguf belongs to another model: it gives 128 numbers per token, m.gguf "
    "takes 64; give the mmproj made for this model.",
    "-m alone/m.gguf --mmproj alone/m.gguf": "alone/m.gguf is not a vision encoder: give the mmproj GGUF *",
    "-m alone/m.gguf --mmproj nope.gguf": "nope.gguf does not exist: check *",
    "-m llava/mmproj-m.gguf": "llava/mmproj-m.gguf is a vision encoder: give it with --mmproj, and its language model "
    "with -m.",
    "--hf nope": "--hf nope is not valid: it must be OWNER/REPO or OWNER/REPO:QUANT, like *",
    # in settings
    "--profile nope": "There is no preset 'nope': those are *",
    "--profile nope.json": "nope.json does not exist: check the name and the folder.",
    "--profile words.txt": "words.txt is not *",
    "--keep 0": "--keep 0 is not valid: it must be above 0 and at most 1.",
    "--keep half": "--keep 'half' is not valid: it must be a number; `halfv chat --help` lists the flags.",
    "--keep 0.5 --profile off": "--keep 0.5 needs a profile, and --profile off says none: leave one of them out.",
    "--ctx 0": "--ctx '0' is not valid: it must be a whole number of at least 1; `halfv chat --help` lists the flags.",
    "--ctx 99999": "--ctx 99999 is more than the 32768 tokens that m.gguf can follow.",
    "--kv-type q9": "--kv-type q9 is not valid: it must be one of *",
    "--temp -1": "--temp -1 is not valid: it must be at least 0.",
    "--top-p 2": "--top-p 2 is not valid: it must be between 0 and 1.",
    "--seed -2": "--seed -2 is not valid: it must be from 0 to 4294967294.",
    "--grammar nope.gbnf": "nope.gbnf does not exist: check the name and the folder.",
    "--grammar undefined.gbnf": "undefined.gbnf is not a grammar: Undefined rule identifier 'b'; it must be GBNF with "
    "a rule root.",
    "--grammar cat.jpg": "cat.jpg is not UTF-8 text: --grammar needs a text file.",
    "--json-schema words.txt": "words.txt: The JSON schema cannot be used: *",
    "-m qwen2vl/m.gguf --image-max-tokens 1": "--image-max-tokens 1 is too few for this encoder: it needs at least 8.",
    "--exact --prepare": "--prepare is not allowed with --exact; `halfv chat --help` lists the flags.",
    "--bogus": "unrecognized arguments: --bogus; `halfv chat --help` lists the flags.",
    "-p EMPTY": "The question '' is empty: ask something.",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(
    mistake: str, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence on stderr, nothing on stdout, exit code 2."""
    monkeypatch.chdir(place)
    given = ["" if word == "EMPTY" else word for word in mistake.split()]
    model = [] if {"-m", "--hf"} & set(given) else ["-m", "llava/m.gguf"]
    try:
        code = main(["chat", "--threads", "1", "-p", QUESTION, *model, *given])
    except SystemExit as stop:  # from argparse
        code = stop.code
    out, err = capfd.readouterr()
    wanted = re.escape(f"halfv: {MISTAKES[mistake]}").replace(r"\*", ".*")
    assert re.fullmatch(wanted, err.removesuffix("\n")), err
    assert (code, out) == (2, "")


def test_no_model(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("halfv_edge.hub.demo.DEMO_FOLDER", place)
    assert main(["chat", "cat.jpg"]) == 2
    assert capsys.readouterr().err.startswith("halfv: No model was given: name a GGUF with its mmproj")
    assert main(["chat", "--list-models"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in listed] == [list(pair) for pair in KNOWN.items()]
    assert all(re.fullmatch(r".* \d+\.\d GB +\d+\.\d GB  (preset|no preset: calibrate)", line) for line in listed)
    pruned = {line.split()[0] for line in listed if line.endswith("  preset")}
    assert pruned == {name for name in KNOWN if name in PRESETS}


@pytest.mark.parametrize("name", MODELS)
def test_known_shapes(name: str) -> None:
    """A model has about as many weights as its name says, and where the bench knows its shape too they agree."""
    model = MODELS[name]
    if said := re.search(r"-(\d+(\.\d+)?)b", name):
        assert abs(model.weights + model.encoder - float(said[1])) < 0.3 * float(said[1])
    assert 0 < model.file_gb < model.memory_gb
    if shape := SHAPES.get(name):
        n_layer = shape.n_layer // 4 if shape.arch == "qwen35" else shape.n_layer
        assert model.keys == n_layer * shape.n_head_kv * shape.head_dim


def test_memory_of_a_known_shape() -> None:
    """By hand: 6.74 billion weights of Llama 7B, 32 layers of 4096 keys and values."""
    model = MODELS["llava-1.5-7b"]
    assert model.weights == pytest.approx(6.74, abs=0.01)
    assert model.memory_gb == pytest.approx(6.74 * 4.9 / 8 + 0.64 + 32 * 2 * 4096 * 8192 * 2 / 1e9, abs=0.02)


def test_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    run = ("chat", "-m", "long.gguf", "--mmproj", "llava/mmproj-m.gguf", "-p", QUESTION, "--threads", "1")
    done = limited.halfv(*run, "--ctx", "100000000", memory_mib=4096)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "halfv: There is not enough memory for a context of 100000000 tokens: lower --ctx, use --kv-type q8_0"
    )
    assert done.stderr.count("\n") == 1


def test_a_failure_while_running(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RunError("llama.cpp could not compute (-3): the device is gone.")

    monkeypatch.setattr(Context, "evaluate", fail)
    monkeypatch.chdir(place)
    assert main(["chat", "-m", "llava/m.gguf", "--threads", "1", "-p", QUESTION]) == 1
    assert capsys.readouterr() == ("", "halfv: llama.cpp could not compute (-3): the device is gone.\n")


#
# halfv tokens
#


def test_tokens(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for kind, counts in (("qwen2vl", "165 -> 82 -> 16"), ("llava-next", "500 -> 250 -> 50")):
        run = ["tokens", "-m", f"{kind}/m.gguf", "--threads", "1", "cat.jpg", "-p", QUESTION]
        assert main([*run, "-o", f"{kind}.png", "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == f"halfv: wrote {kind}.png: {counts}.\n"
        (image,) = json.loads(out)["images"]
        assert f"{image['n_visual']} -> {image['n_kept']} -> {image['n_deep']}" == counts
        assert sum(map(len, image["kept"])) == image["n_kept"]
        with Image.open(place / image["file"]) as drawn:
            assert drawn.format == "PNG"
    run = ["tokens", "-m", "llava/m.gguf", "--threads", "1", "cat.jpg", "dog.png", "-p", QUESTION, "--prepare"]
    assert main([*run, "-o", "both.png", "--profile", "off"]) == 0
    assert "halfv: nothing was pruned: --profile off.\n" in capsys.readouterr().err
    assert (place / "both-1.png").exists() and (place / "both-2.png").exists() and not (place / "both.png").exists()


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("map.jpg", "map.jpg is not a PNG: name the drawing map.jpg.png or the like."),
        ("dog.png", "dog.png is one of the pictures: choose another name for the drawing."),
        ("nope/map.png", "nope/map.png cannot be written: No such file or directory."),
    ],
)
def test_tokens_that_cannot_be_written(
    out: str, why: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = (place / "dog.png").read_bytes()
    assert main(["tokens", "-m", "llava/m.gguf", "--threads", "1", "dog.png", "-p", QUESTION, "-o", out]) == 2
    assert capsys.readouterr().err == f"halfv: {why}\n"
    assert (place / "dog.png").read_bytes() == before


#
# docs
#


@pytest.mark.parametrize("command", ["chat", "tokens"])
def test_docs_list_the_flags(command: str, root: Path) -> None:
    """docs/chat.md has exactly these lines."""
    commands = argparse.ArgumentParser().add_subparsers()
    cli_chat.add_command(commands)
    cli_tokens.add_command(commands)
    rows = []
    for action in commands.choices[command]._actions:
        if action.option_strings and action.dest != "help":
            names = ", ".join(f"`{name}`" for name in action.option_strings)
            value = f" {action.metavar}".replace("|", "\\|") if action.metavar else ""
            rows.append(f"| {names}{value} | {(action.help or '') % vars(action)} |\n")
    wanted = f"## Flags of `halfv {command}`\n| flag | what |\n|---|---|\n{''.join(rows)}"
    assert wanted in (root / "docs" / "chat.md").read_text(), f"docs/chat.md should have\n\n{wanted}"
