"""`halfv profile` as a user meets it: what it prints, what it writes, and that nothing else in the file changes."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import gguf as gguf_package
import halfv_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_edge.cli.main import main
from halfv_edge.gguf.read import read_metadata
from halfv_edge.gguf.write import replace_keys
from halfv_edge.profile import presets
from halfv_edge.profile.profile import Calibration, Profile
from halfv_edge.testing.client import Client
from tests.support.gguf_bytes import MODEL, NAMES, PROFILE, TENSORS, gguf, pair
from tests.support.profile_command import Run, kept, names
from tests.support.tiny_models import make_tiny

GOOD = Profile(2, 0.5, 0.2, 4, 0.1, "dropped")
QWEN = (
    pair("general.architecture", "str", "qwen2vl"),
    pair("general.name", "str", "Qwen2.5 VL 3B Instruct"),
    pair("qwen2vl.block_count", "u32", 36),
)


# show


def test_show(model: Path, run: Run) -> None:
    assert run("show", model).splitlines() == [
        'model      "hand made", llama, 6 layers',
        "profile    in the file",
        "stage II   from layer 2: keeps 50% of the visual tokens, 20% of those by attention",
        "stage III  from layer 4: updates 10%, the rest is dropped",
        "pictures   of fewer than 64 visual tokens are left whole",
    ]
    assert run.err == ""


def test_show_json(model: Path, run: Run) -> None:
    assert json.loads(run("show", "--json", model)) == {
        "file": str(model),
        "model": {"name": "hand made", "architecture": "llama", "n_layer": 6},
        "source": "gguf",
        "preset": None,
        "published": None,
        "profile": GOOD.to_json(),
    }


def test_show_none(bare: Path, run: Run) -> None:
    assert run("show", bare).splitlines()[1:] == ["profile    none: the model runs unpruned"]
    assert json.loads(run("show", "--json", bare))["profile"] is None


def test_show_preset(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "qwen.gguf"
    path.write_bytes(gguf(QWEN, TENSORS))
    source = "profile    none in the file; halfv itself takes the preset "
    assert source + "qwen2.5-vl-3b (scaled from a published one, not measured)\n" in run("show", path)
    shown = json.loads(run("show", path, "--json"))
    assert (shown["source"], shown["preset"], shown["published"]) == ("preset", "qwen2.5-vl-3b", False)
    path.write_bytes(gguf([*QWEN[:2], pair("qwen2vl.block_count", "u32", 28)], TENSORS))
    assert source + "qwen2.5-vl-7b (published)\n" in run("show", path)


def test_show_sidecar_and_environment(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("add", model, "--sidecar", "--ssr-layer", "6")
    assert f"profile    halfv itself takes the sidecar {model.with_suffix('.halfv.json')}\n" in run("show", model)
    assert run.err == "halfv: the sidecar goes before the profile that is in the file.\n"
    assert "stage III  none\n" in run("show", model)
    monkeypatch.setenv("HALFV", "off")
    run("show", model)
    assert run.err.endswith("halfv: HALFV=off is set, so models run unpruned here.\n")


def test_show_evidence(bare: Path, run: Run) -> None:
    evidence = Calibration(100, "coco val", tuple(range(7)), None, tuple(range(6)), 0.0123)
    source = bare.with_name("p.json")
    source.write_text(json.dumps(GOOD.to_json() | {"calibration": evidence.to_json()}))
    run("add", bare, "--from", source, "--in-place")
    assert kept(bare).calibration == evidence
    said = 'calibrated 100 samples, from "coco val", divergence 0.0123, visual_entropy, layer_kl'
    assert run("show", bare).splitlines()[-1] == said


def test_show_notes(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(gguf([*MODEL, PROFILE[1]], TENSORS))
    assert "none: the model runs unpruned" in run("show", path)
    assert run.err == f"halfv: {path}: halfv.ivr.layer is there without halfv.version, so it has no effect.\n"


# add: what is written


def test_add_preset(tmp_path: Path, run: Run) -> None:
    path, out = tmp_path / "qwen.gguf", tmp_path / "out.gguf"
    path.write_bytes(gguf(QWEN, TENSORS))
    before = path.read_bytes()
    assert run("add", path, "-o", out) == ""
    assert run.err == f"halfv: wrote {out}.\n"
    assert kept(out) == presets.get("qwen2.5-vl-3b").profile
    assert path.read_bytes() == before
    assert names(tmp_path) == ["out.gguf", "qwen.gguf"]

    run("add", path, "--preset", "QWEN2.5-vl-7b", "--in-place")  # scaled to the file's layers
    assert kept(path) == kept(out)


def test_add_from_json_and_from_gguf(bare: Path, model: Path, run: Run) -> None:
    source = bare.with_name("p.json")
    source.write_text(json.dumps(GOOD.to_json()))
    shown = json.loads(run("add", bare, "--from", source, "--in-place", "--json"))
    assert shown == {"file": str(bare), "profile": GOOD.to_json()}
    assert kept(bare) == GOOD
    run("strip", bare, "--in-place")
    run("add", bare, "--from", model, "--in-place")
    assert kept(bare) == GOOD
    run("strip", model, "--in-place")
    assert run.fails("add", bare, "--from", model, "--in-place") == f"{model} carries no profile."


def test_add_flags(bare: Path, run: Run) -> None:
    flags = {"--ivr-layer": 3, "--ivr-keep": 0.3, "--ivr-anchors": 0, "--ssr-layer": 5, "--ssr-update": 0.05}
    flags |= {"--ssr-rest": "frozen", "--min-visual-tokens": 10}
    run("add", bare, "--in-place", *(str(part) for flag in flags.items() for part in flag))
    assert kept(bare) == Profile(3, 0.3, 0.0, 5, 0.05, "frozen", 10)
    run("add", bare, "--in-place", "--ivr-keep", "0.4")  # over what is in the file
    assert kept(bare) == Profile(3, 0.4, 0.0, 5, 0.05, "frozen", 10)


def test_add_flags_over_nothing(bare: Path, run: Run) -> None:
    run("add", bare, "--in-place", "--ivr-keep", "0.5")
    assert kept(bare) == Profile(1, 0.5, 0.1, 6, 1.0, "dropped")


def test_evidence_goes_with_the_profile_that_it_is_for(bare: Path, run: Run) -> None:
    source = bare.with_name("p.json")
    source.write_text(json.dumps(GOOD.to_json() | {"calibration": {"samples": 9}}))
    run("add", bare, "--from", source, "--ivr-keep", "0.5", "--in-place")  # which it is already
    assert kept(bare).calibration == Calibration(9)
    run("add", bare, "--ivr-keep", "0.6", "--in-place")
    assert kept(bare).calibration is None


def test_add_sidecar(bare: Path, run: Run) -> None:
    before = bare.read_bytes()
    sidecar = bare.with_name("bare.halfv.json")
    run("add", bare, "--preset", "llava-1.5-7b", "--sidecar")
    assert run.err == f"halfv: wrote {sidecar}.\n"
    assert Profile.from_json(json.loads(sidecar.read_text())) == presets.get("llava-1.5-7b").scaled(6).profile
    assert bare.read_bytes() == before
    assert names(bare.parent) == ["bare.gguf", "bare.halfv.json"]

    run("add", bare, "--preset", "llava-1.5-7b", "--in-place")
    assert run.err.startswith(f"halfv: {sidecar} still goes before what is in the file.\n")
    run("strip", bare, "--sidecar")
    assert names(bare.parent) == ["bare.gguf"]
    assert run.fails("strip", bare, "--sidecar") == f"{sidecar} cannot be deleted: No such file or directory."


def test_preset_of_another_architecture_is_warned_of(bare: Path, run: Run) -> None:
    run("add", bare, "--preset", "qwen2.5-vl-7b", "--in-place")
    assert run.err.startswith("halfv: the preset qwen2.5-vl-7b is for models of the architecture qwen2vl, and this one")
    assert kept(bare).ssr_rest == "dropped"


# add and strip: everything else stays

integers = {name: (0, 2**bits - 1) for name, bits in (("u8", 8), ("u16", 16), ("u32", 32), ("u64", 64))}
integers |= {name: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for name, bits in (("i8", 8), ("i16", 16), ("i64", 64))}


def values(type_: str) -> st.SearchStrategy:
    if type_ == "str":
        return st.binary(max_size=20)
    if type_ == "bool":
        return st.booleans()
    if type_ in integers:
        return st.integers(*integers[type_])
    return st.floats(width=64 if type_ == "f64" else 32)


@st.composite
def pairs(draw: st.DrawFn, key: str) -> bytes:
    type_ = draw(st.sampled_from([*integers, "f32", "f64", "bool", "str", "arr"]))
    if type_ != "arr":
        return pair(key, type_, draw(values(type_)))
    item_type = draw(st.sampled_from([*integers, "f32", "f64", "bool", "str"]))
    return pair(key, "arr", draw(st.lists(values(item_type), max_size=5)), item_type)


@st.composite
def files(draw: st.DrawFn) -> tuple[list[bytes], list[tuple[str, bytes]], int, int]:
    """Keys of every type, some of them halfv.*, in any order; tensors; alignment; version."""
    own = draw(st.lists(st.text(min_size=1, max_size=8), max_size=8, unique=True))
    found = [draw(pairs(f"x.{key}")) for key in own] + list(MODEL)
    alignment = draw(st.sampled_from([None, 8, 32, 64, 4096]))
    if alignment:
        found.append(pair("general.alignment", "u32", alignment))
    found += draw(st.sampled_from([(), PROFILE, (pair("halfv.colour", "str", "red"),)]))
    sizes = draw(st.lists(st.integers(0, 300), max_size=4))
    tensors = [(f"t{i}", bytes([i + 1]) * 4 * size) for i, size in enumerate(sizes)]
    return draw(st.permutations(found)), tensors, alignment or 32, draw(st.sampled_from([2, 3]))


@settings(deadline=None)
@given(files())
def test_only_the_profile_changes(tmp_path_factory: pytest.TempPathFactory, drawn: tuple) -> None:
    """Byte for byte what a writer would have made with the other keys in the same order, and the new ones last."""
    found, tensors, alignment, version = drawn
    folder = tmp_path_factory.getbasetemp()
    source, target = folder / "in.gguf", folder / "out.gguf"
    source.write_bytes(gguf(found, tensors, alignment=alignment, version=version))
    others = [raw for raw in found if not raw[8:].startswith(b"halfv.")]  # behind the length of the key
    new = [pair(key, NAMES[type_], value) for key, (type_, value) in GOOD.to_gguf().items()]

    replace_keys(read_metadata(source), "halfv.", GOOD.to_gguf(), target, progress=False)
    assert target.read_bytes() == gguf([*others, *new], tensors, alignment=alignment, version=version)
    replace_keys(read_metadata(target), "halfv.", {}, target, progress=False)
    assert target.read_bytes() == gguf(others, tensors, alignment=alignment, version=version)


def test_bytes_after_the_tensors_stay(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "tail.gguf"
    path.write_bytes(gguf(MODEL, TENSORS) + b"tail")
    run("add", path, "--ivr-keep", "0.5", "--in-place")
    assert path.read_bytes() == gguf([*MODEL, *_pairs_of(path)], TENSORS) + b"tail"
    run("strip", path, "--in-place")
    assert path.read_bytes() == gguf(MODEL, TENSORS) + b"tail"


def _pairs_of(path: Path) -> list[bytes]:
    raw = path.read_bytes()
    return [raw[e.start : e.end] for key, e in read_metadata(path).entries.items() if key.startswith("halfv.")]


def test_a_real_model(tmp_path: Path, run: Run) -> None:
    """Seen by others: the gguf package finds the same keys and tensors, llama.cpp the profile and the same logits."""
    path, out = make_tiny(tmp_path / "model.gguf", "qwen2vl", n_layer=6, ftype="q8_0"), tmp_path / "out.gguf"
    run("add", path, "--preset", "qwen2.5-vl-7b", "-o", out)
    before, after = gguf_package.GGUFReader(path), gguf_package.GGUFReader(out)
    fields = {name: b"".join(part.tobytes() for part in field.parts) for name, field in after.fields.items()}
    others = {name: raw for name, raw in fields.items() if not name.startswith(("halfv.", "GGUF."))}
    assert others == {
        name: b"".join(part.tobytes() for part in field.parts)
        for name, field in before.fields.items()
        if not name.startswith("GGUF.")
    }
    assert fields.keys() - others.keys() >= set(kept(out).to_gguf())
    assert [(t.name, t.tensor_type, t.shape.tolist()) for t in after.tensors] == [
        (t.name, t.tensor_type, t.shape.tolist()) for t in before.tensors
    ]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(after.tensors, before.tensors, strict=True))

    logits = []
    for file in (path, out):
        with Client(file) as client:
            client.text([1, 40, 41, 42])
            logits.append(client.logits())
            found = halfv_cpp.model_profile(client.model)
    assert Profile.from_c(found) == kept(out)
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5)

    run("strip", out, "--in-place")
    assert out.read_bytes() == path.read_bytes()


def test_upstream_vocabularies(llama_tree: Path, tmp_path: Path, run: Run) -> None:
    """Real metadata of many kinds goes through and comes back."""
    vocabularies = sorted((llama_tree / "models").glob("*.gguf"))
    assert len(vocabularies) > 10
    for path in vocabularies:
        out = tmp_path / path.name
        run("add", path, "--ivr-keep", "0.5", "-o", out)
        assert kept(out).ivr_keep == 0.5
        run("strip", out, "--in-place")
        assert out.read_bytes() == path.read_bytes()


def test_strip(model: Path, run: Run) -> None:
    shown = run("strip", model, "--in-place", "--json")
    assert json.loads(shown) == {"file": str(model), "profile": None}
    assert run.err == f"halfv: wrote {model}.\n"
    assert model.read_bytes() == gguf(MODEL, TENSORS)
    inode = model.stat().st_ino
    run("strip", model, "--in-place")
    assert run.err == f"halfv: {model} carries no profile: nothing to do.\n"
    assert model.stat().st_ino == inode
    run("strip", model, "-o", model.with_name("copy.gguf"))
    assert model.with_name("copy.gguf").read_bytes() == model.read_bytes()


def test_a_profile_that_is_wrong_can_be_replaced_and_stripped(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf([*MODEL, pair("halfv.version", "u32", 2), *PROFILE[1:]], TENSORS))
    assert run.fails("show", path).startswith(f"{path}: halfv.version = 2 is not valid: this build reads version 1; ")
    run("add", path, "--preset", "llava-1.5-7b", "-o", tmp_path / "out.gguf")
    assert kept(tmp_path / "out.gguf").ssr_rest == "frozen"
    run("strip", path, "--in-place")
    assert path.read_bytes() == gguf(MODEL, TENSORS)


def test_mode_of_the_file_stays(model: Path, run: Run) -> None:
    model.chmod(0o640)
    run("strip", model, "--in-place")
    assert stat.S_IMODE(model.stat().st_mode) == 0o640


# mistakes


def test_refused(model: Path, bare: Path, run: Run) -> None:
    folder = model.parent
    before = model.read_bytes()
    (folder / "bad.json").write_text('{"version": 1}')
    link = folder / "link.gguf"
    link.symlink_to(model)
    mistakes = {
        ("add", bare, "--in-place"): f'{bare}: no preset is known for "hand made": give --preset (llava-1.5-7b, ',
        ("add", bare, "--in-place", "--preset", "gpt"): "There is no preset 'gpt': those are llava-1.5-7b, ",
        ("add", bare, "--in-place", "--from", folder / "no.json"): f"{folder}/no.json cannot be read: No such file",
        ("add", bare, "--in-place", "--from", folder / "bad.json"): f"{folder}/bad.json: halfv.ivr.layer is missing: ",
        (
            "add",
            bare,
            "--in-place",
            "--ivr-keep",
            "1.5",
        ): "halfv.ivr.keep = 1.5 is not valid: it must be above 0 and at",
        (
            "add",
            bare,
            "--in-place",
            "--ivr-keep",
            "nan",
        ): "halfv.ivr.keep = nan is not valid: it must be above 0 and at",
        (
            "add",
            bare,
            "--in-place",
            "--ivr-layer",
            "-1",
        ): "halfv.ivr.layer = -1 is not valid: it must be a whole number",
        ("add", bare, "--in-place", "--ssr-rest", "melted"): 'halfv.ssr.rest = "melted" is not valid: it must be "froz',
        ("add", model, "-o", model): f"{model} exists already: give --in-place.",
        ("add", model, "-o", bare): f"{bare} exists already: delete it, or choose another name.",
        ("add", model, "-o", folder): f"{folder} is a folder: name the file in it.",
        (
            "add",
            model,
            "-o",
            folder / "no" / "out.gguf",
        ): f"{folder}/no/out.gguf cannot be written: No such file or dir",
        ("add", model, "-o", folder / ("x" * 300)): f"{folder}/{'x' * 300} cannot be written: File name too long.",
        ("add", link, "--in-place"): f"{link} is a link: name the file {model}, or give -o OUT.gguf.",
    }
    for args, sentence in mistakes.items():
        assert run.fails(*args).startswith(sentence)
    assert model.read_bytes() == before
    assert names(folder) == ["bad.json", "bare.gguf", "link.gguf", "model.gguf"]


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("show",),
        ("add", "model.gguf"),
        ("strip", "model.gguf"),
        ("add", "model.gguf", "--in-place", "--sidecar"),
        ("add", "model.gguf", "--in-place", "--preset", "llava-1.5-7b", "--from", "p.json"),
        ("add", "model.gguf", "--in-place", "--ivr-keep", "half"),
    ],
)
def test_usage(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["profile", *args])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("halfv: ") and said.count("\n") == 1 and "`halfv profile" in said


def test_as_a_program(model: Path) -> None:
    command = [sys.executable, "-m", "halfv_edge", "profile", "show", "--json", model]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["profile"] == GOOD.to_json()
