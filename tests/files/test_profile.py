"""Profiles: the table that Python and the native library share, JSON, GGUF, and which profile a model runs with."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from ctypes import byref
from pathlib import Path
from typing import Any

import halfv_cpp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import FLOAT32, STRING, UINT32
from halfv_edge.profile import presets, profile, resolve, stored, values
from halfv_edge.profile.keys import KEYS, LEVELS, PART, Key
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Calibration, Profile
from halfv_edge.testing.client import LOG, Client, log_text
from tests.support.gguf_bytes import CODES, MODEL, PROFILE, TENSORS, gguf, pair
from tests.support.profiles import (
    CASES,
    GOOD,
    N_LAYER,
    TYPES,
    assert_same_mistake,
    case_id,
    complaints,
    nested,
    put,
    said,
    values_of,
)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_gguf(case: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    """The same file to both readers."""
    types = TYPES | case.get("types", {})
    keys = {f"halfv.{key}": (CODES[types[key]], value) for key, value in values_of(case).items()}
    path = put(keys, plain, tmp_path / "model.gguf")
    seen: list[Any] = []

    def ask(model: int) -> None:
        out = halfv_cpp.halfv_profile()
        rc = halfv_cpp.halfv_model_get_profile(model, byref(out))
        seen.append(Profile.from_c(out) if rc == 0 else halfv_cpp.halfv_last_error().decode())

    LOG.clear()
    if case["says"] is None:
        expected = stored.read_gguf(ModelFile.read(path))
        with Client(path, on_model=ask):
            assert seen == [expected]
    else:
        with pytest.raises(HalfVError) as error:
            stored.read_gguf(ModelFile.read(path))
        assert said(error) == f"{path}: {case['says']}"
        with pytest.raises(RuntimeError, match="cannot make a context"):
            Client(path, on_model=ask)
        assert seen == [f"halfv: {case['says']}"]
        assert case["says"] in log_text()


@pytest.mark.parametrize("case", [case for case in CASES if "types" not in case], ids=case_id)
def test_json(case: dict[str, Any]) -> None:
    value = nested(values_of(case))
    if case["says"] is None:
        assert Profile.from_json(value).validate(N_LAYER).to_json() == json.loads(
            json.dumps(nested({"min_visual_tokens": 64, "visual_share": 0.0, "input.keep": 1.0} | values_of(case))),
            parse_float=as_f32,
        )
    else:
        with pytest.raises(HalfVError) as error:
            Profile.from_json(value).validate(N_LAYER)
        assert said(error) == case["says"]


def as_f32(value: str) -> float:
    return values.to_f32(float(value))


u32 = st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1))
f32 = st.one_of(st.floats(0, 1, width=32), st.floats(width=32))
tau = st.none() | st.floats(0, 255, width=32)


def profiles(number: st.SearchStrategy[float]) -> st.SearchStrategy[Profile]:
    """Any values of the types that keys have."""

    def value(key: Key) -> st.SearchStrategy[Any]:
        if key.names:
            return st.sampled_from(key.names)
        return u32 if key.type == UINT32 else tau | number if key.range is LEVELS else number

    lists = st.lists(st.tuples(u32, number), max_size=profile.MAX_FURTHER)
    values = {name: value(key) for name, key in KEYS.items() if not name.startswith("further")}
    return st.builds(
        lambda values, pairs: Profile(
            **values, further_layers=[layer for layer, _ in pairs], further_keep=[keep for _, keep in pairs]
        ),
        st.fixed_dictionaries(values), lists,
    )  # fmt: skip


@settings(deadline=None)
@given(profiles(f32), st.integers(1, 40))
def test_python_and_c_agree(given_: Profile, n_layer: int) -> None:
    ours, theirs = complaints(given_, n_layer)
    assert ours == theirs


def test_defaults_agree() -> None:
    assert Profile.from_c(halfv_cpp.default_profile(28)) == Profile.default(28)
    Profile.default(28).validate(28)
    assert not Profile.default(28).prunes(28)
    assert halfv_cpp.HALFV_PROFILE_VERSION == profile.VERSION


# through JSON, GGUF and C and back


@st.composite
def fitting(draw: st.DrawFn) -> tuple[Profile, int]:
    """A profile with evidence, and the layers of a model that it fits."""
    n_layer = draw(st.integers(2, 80))
    ivr = draw(st.integers(1, n_layer - 1))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)

    def curve(count: int) -> st.SearchStrategy:
        return st.none() | st.lists(finite, min_size=count, max_size=count).map(tuple)

    text = st.text(st.characters(exclude_categories=["Cs"]))
    calibration = st.builds(
        Calibration, st.none() | u32, st.none() | text, curve(n_layer + 1), curve(n_layer + 1), curve(n_layer),
        st.none() | finite,
    )  # fmt: skip
    values: dict[str, Any] = {}
    for name, key in KEYS.items():
        if key.names:
            values[name] = draw(st.sampled_from(key.names))
        elif key.type == FLOAT32:
            share = st.floats(0, 1, width=32, exclude_min=key.range is PART)
            values[name] = draw(tau if key.range is LEVELS else share)
        elif name.endswith("_layer") and not key.range:
            values[name] = draw(st.integers(ivr, n_layer - 1))
        else:
            values[name] = draw(st.integers(1, 2**32 - 1))
    ssr = draw(st.integers(ivr + 1, n_layer))
    behind = st.sets(st.integers(ssr + 1, n_layer - 1), max_size=profile.MAX_FURTHER)
    layers = sorted(draw(behind)) if ssr + 1 < n_layer else []
    seen = st.just(0.0) if values["ssr_rest"] == profile.FROZEN else st.floats(0, 1, width=32)
    width = draw(st.sampled_from((0, 1, 5, 255)))
    values |= {"ivr_layer": ivr, "ssr_layer": ssr, "neighbours_width": width}
    values |= {"further_layers": layers, "further_keep": [draw(seen) for _ in layers]}
    values |= {"ivr_bias": 0.0} if width else {}
    found = Profile(**values, calibration=draw(st.none() | calibration.filter(lambda c: c != Calibration())))
    return found, n_layer


@settings(deadline=None)
@given(fitting())
def test_json_and_back(pair_: tuple[Profile, int]) -> None:
    given_, n_layer = pair_
    again = Profile.from_json(json.loads(json.dumps(given_.to_json())))
    assert again.validate(n_layer) == given_


@settings(deadline=None)
@given(fitting())
def test_gguf_and_back(tmp_path_factory: pytest.TempPathFactory, pair_: tuple[Profile, int]) -> None:
    given_, n_layer = pair_
    folder = tmp_path_factory.getbasetemp()
    (folder / "in.gguf").write_bytes(gguf([*MODEL[:2], pair("llama.block_count", "u32", n_layer)], TENSORS))
    model = ModelFile.read(put(given_.to_gguf(), folder / "in.gguf", folder / "out.gguf"))
    assert stored.read_gguf(model) == given_
    assert stored.notes(model) == []


@settings(deadline=None)
@given(profiles(f32.filter(lambda value: not math.isnan(value))))
def test_c_and_back(given_: Profile) -> None:
    assert Profile.from_c(given_.to_c()) == given_


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False))
def test_shortest_decimal_is_the_same_float(value: float) -> None:
    assert struct.pack("<f", values.to_f32(value)) == struct.pack("<f", value)


def test_decimals_stay_as_they_are_written(by_hand: Path, tmp_path: Path) -> None:
    for decimal in (0.1, 0.05, 0.3, 0.123456, 1 / 3):
        again = stored.read_gguf(
            ModelFile.read(put(dataclasses.replace(GOOD, ivr_keep=decimal).to_gguf(), by_hand, tmp_path / "a.gguf"))
        )
        assert again.ivr_keep == values.to_f32(decimal)
    assert values.to_f32(0.1) == 0.1
    assert values.to_f32(1e300) == math.inf


# JSON

BAD_JSON = {
    "[]": "a profile is a JSON object, not []",
    "{}": "halfv.version is missing: a profile needs it",
    "nonsense": "is not valid JSON: ",
    "": "is not valid JSON: ",
    "[" * 100_000: "nested too deep",
    '{"version": 1, "version": 1}': 'the key "version" is there twice',
    '{"version": "1"}': 'halfv.version = "1" is not valid: this build reads version 1; ',
    '{"version": true}': "halfv.version = true is not valid: ",
    '{"version": 1, "ivr": 2}': "halfv.ivr = 2 is not valid: it must be an object",
    '{"version": 1, "ivr.layer": 2}': 'the key "ivr.layer" has a dot: write it as an object in an object',
    '{"version": 1, "ivr": {"kep": 0.5}}': '"halfv.ivr.kep" is not a key of a profile: those are halfv.ivr.layer, ',
    '{"version": 1, "ivr": {"layer": 2.0}}': "halfv.ivr.layer = 2.0 is not valid: it must be a whole number from 0",
    '{"version": 1, "ivr": {"layer": -1}}': "halfv.ivr.layer = -1 is not valid: it must be a whole number from 0 to",
    '{"version": 1, "ivr": {"layer": 4294967296}}': "halfv.ivr.layer = 4294967296 is not valid: it must be a whole",
    '{"version": 1, "ivr": {"layer": true}}': "halfv.ivr.layer = true is not valid: it must be a whole number",
    '{"version": 1, "ivr": {"layer": null}}': "halfv.ivr.layer = null is not valid: it must be a whole number",
    '{"version": 1, "ivr": {"keep": "0.5"}}': 'halfv.ivr.keep = "0.5" is not valid: it must be a number',
    '{"version": NaN}': "is not valid JSON: ",
    '{"version": 1, "ivr": {"layer": [1, {"a": 2}]}}': 'halfv.ivr.layer = [1,{"a":2}] is not valid: it must be a whole',
    '{"version": 1, "ssr": {"rest": 1}}': "halfv.ssr.rest = 1 is not valid: it must be text",
}


@pytest.mark.parametrize("text", BAD_JSON, ids=lambda text: text[:40] or "empty")
def test_json_types(text: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(HalfVError) as error:
        stored.read_json(path)
    assert said(error).startswith(str(path))
    assert BAD_JSON[text] in said(error)
    assert "\n" not in said(error)
    monkeypatch.setenv("HALFV_PROFILE", str(path))
    assert_same_mistake(plain, BAD_JSON[text].rstrip(": "))


BAD_CALIBRATION = {
    "source": ("\ud800", 'halfv.calibration.source = "\\ud800" is not valid: it must be text'),
    "samples": (-1, "halfv.calibration.samples = -1 is not valid: it must be a whole number from 0 to 4294967295"),
    "visual_entropy": ([1] * 6, "halfv.calibration.visual_entropy = 6 values is not valid: a model of 6 layers has 7"),
    "text_entropy": ([math.nan] * 7, "halfv.calibration.text_entropy = nan is not valid: it must be finite"),
    "layer_kl": ([1.0] * 7, "halfv.calibration.layer_kl = 7 values is not valid: a model of 6 layers has 6"),
    "divergence": (1e39, "halfv.calibration.divergence = inf is not valid: it must be finite"),
    "mood": ("good", '"halfv.calibration.mood" is not a key of a profile: those are halfv.calibration.samples, '),
}


@pytest.mark.parametrize("name", BAD_CALIBRATION)
def test_json_calibration(name: str, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value, sentence = BAD_CALIBRATION[name]
    with pytest.raises(HalfVError) as error:
        Profile.from_json(GOOD.to_json() | {"calibration": {name: value}}).validate(N_LAYER)
    assert said(error).startswith(sentence)
    text = json.dumps(GOOD.to_json() | {"calibration": {name: value}})
    if name not in ("source", "text_entropy"):  # half a character and NaN are not JSON
        monkeypatch.setenv("HALFV_PROFILE", text)
        assert_same_mistake(plain, f": {sentence}")


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD.to_json()).encode())
    assert stored.read_json(path) == GOOD
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(HalfVError, match="it is not UTF-8 text"):
        stored.read_json(path)
    path.write_bytes(b" " * (stored.MAX_SIDECAR_BYTES + 1))
    with pytest.raises(HalfVError, match="is too long for a profile"):
        stored.read_json(path)


# what a GGUF may have besides


def test_evidence_never_stops_a_model(tmp_path: Path) -> None:
    """The native library does not read it, so a fault in it is a note."""
    path = tmp_path / "model.gguf"
    wrong = (
        pair("halfv.calibration.samples", "str", "many"),
        pair("halfv.calibration.layer_kl", "arr", [1.0], "f64"),
        pair("halfv.calibration.visual_entropy", "arr", [1.0, 2.0]),
        pair("halfv.calibration.text_entropy", "arr", [math.nan] * 7),
        pair("halfv.calibration.divergence", "f32", 0.25),
    )
    path.write_bytes(gguf([*MODEL, *PROFILE, *wrong], TENSORS))
    model = ModelFile.read(path)
    assert resolve.resolve(model).profile == dataclasses.replace(GOOD, calibration=Calibration(divergence=0.25))
    assert stored.notes(model) == [
        "halfv.calibration.samples = str is not valid: its type must be u32, so it is left out",
        "halfv.calibration.visual_entropy = 2 values is not valid: a model of 6 layers has 7, so it is left out",
        "halfv.calibration.text_entropy = nan is not valid: it must be finite, so it is left out",
        "halfv.calibration.layer_kl = arr is not valid: its type must be array of f32, so it is left out",
    ]


def test_unknown_keys_are_passed_over(plain: Path, tmp_path: Path) -> None:
    path = put(GOOD.to_gguf() | {"halfv.colour": (STRING, "red")}, plain, tmp_path / "model.gguf")
    assert stored.read_gguf(ModelFile.read(path)) == GOOD
    with Client(path) as client:
        assert Profile.from_c(halfv_cpp.model_profile(client.model)) == GOOD


def test_keys_without_a_version_are_no_profile(plain: Path, tmp_path: Path) -> None:
    keys = GOOD.to_gguf()
    del keys["halfv.version"]
    model = ModelFile.read(put(keys, plain, tmp_path / "model.gguf"))
    assert resolve.resolve(model) == resolve.Resolved(None, "off")
    assert stored.notes(model) == ["halfv.ivr.layer is there without halfv.version, so it has no effect"]
    with Client(model.path) as client:
        assert halfv_cpp.model_profile(client.model) is None


# which profile


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other is taken away."""
    path = tmp_path / "model.gguf"
    qwen = (
        pair("general.architecture", "str", "qwen2vl"),
        pair("general.name", "str", "Qwen2.5 VL 7B Instruct"),
        pair("qwen2vl.block_count", "u32", 28),
    )
    path.write_bytes(gguf([*qwen, *PROFILE], TENSORS))
    beside = dataclasses.replace(GOOD, ivr_keep=0.75)
    assert stored.write_sidecar(beside, path) == tmp_path / "model.halfv.json"
    flag = dataclasses.replace(GOOD, ivr_keep=0.625)

    for off in ("off", "0"):
        monkeypatch.setenv("HALFV", off)
        assert resolve.resolve(path, flag) == resolve.Resolved(None, "environment")
    monkeypatch.delenv("HALFV")
    assert resolve.resolve(path, flag) == resolve.Resolved(flag, "flag")
    assert resolve.resolve(path, "off") == resolve.Resolved(None, "flag")
    assert resolve.resolve(path) == resolve.Resolved(beside, "sidecar")
    (tmp_path / "model.halfv.json").unlink()
    assert resolve.resolve(path) == resolve.Resolved(GOOD, "gguf")
    path.write_bytes(gguf(qwen, TENSORS))
    assert resolve.resolve(path) == resolve.Resolved(presets.QWEN, "preset", "qwen2.5-vl-7b", True)
    path.write_bytes(gguf(MODEL, TENSORS))
    assert resolve.resolve(path) == resolve.Resolved(None, "off")


def test_a_wrong_profile_does_not_give_way_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf([*MODEL, *PROFILE], TENSORS))
    sidecar = stored.write_sidecar(dataclasses.replace(GOOD, ssr_layer=7), path)
    with pytest.raises(HalfVError) as error:
        resolve.resolve(path)
    assert said(error).startswith(f"{sidecar}: halfv.ssr.layer = 7 is not valid: it must be above ")
    with pytest.raises(HalfVError, match=r"^halfv\.ivr\.layer = 6 is not valid"):
        resolve.resolve(path, dataclasses.replace(GOOD, ivr_layer=6))


@pytest.mark.parametrize(
    ("model", "sidecar"),
    [("m.gguf", "m.halfv.json"), ("m.Q4.gguf", "m.Q4.halfv.json"), ("m.GGUF", "m.halfv.json"), ("m", "m.halfv.json")],
)
def test_name_of_the_sidecar(model: str, sidecar: str) -> None:
    assert stored.sidecar_path(Path("models") / model) == Path("models") / sidecar


NOT_LANGUAGE_MODELS = {
    "has no general.architecture": (),
    "is a vision projector": (pair("general.architecture", "str", "clip"),),
    "is an adapter": (pair("general.architecture", "str", "llama"), pair("general.type", "str", "adapter")),
    "is a later part of a split model": (*MODEL, pair("split.no", "u16", 1)),
    'does not say how many layers it has ("llama".block_count)': MODEL[:1],
    "does not say how many layers": (*MODEL[:1], pair("llama.block_count", "str", "six")),
}


@pytest.mark.parametrize("sentence", NOT_LANGUAGE_MODELS)
def test_not_a_language_model(sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(NOT_LANGUAGE_MODELS[sentence], TENSORS))
    with pytest.raises(HalfVError) as error:
        ModelFile.read(path)
    assert said(error).startswith(f"{path} {sentence}")
