"""The table of a profile's keys: the native library's is the same, and what is written out for editors agrees."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from ctypes import byref
from pathlib import Path
from typing import Any

import halfv_cpp
import pytest
from halfv_cpp import llama_h

from halfv_edge.cli import errors, flags
from halfv_edge.engine.options import Pruning
from halfv_edge.gguf.read import ARRAY, FLOAT32, STRING, UINT32
from halfv_edge.profile.keys import ASKED, KEYS, LEVELS
from halfv_edge.profile.profile import Intake, Profile
from halfv_edge.profile.values import WHOLES
from tests.support.profiles import GOOD, N_LAYER, assert_same_mistake, complaints, in_python, natively, put

ALL = pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
# of each type, also what is out of every range
VALUES: dict[int, tuple[Any, ...]] = {
    UINT32: (0, 1, 2, 5, 6, 255, 256, 257, 2**32 - 1),
    FLOAT32: (-1.0, -0.0, 0.0, 1e-45, 0.5, 1.0, 1.5, 255.0, 255.5, math.inf, math.nan),
    WHOLES: ((5,), (1,), (6,)),
    ARRAY: ((-1.0,), (0.0,), (1.0,), (1.5,), (math.nan,)),
}
# a profile that says something with every key
FULL = Profile(
    2, 0.5, 0.2, 4, 0.25, "dropped", 3, 2.0, 0.5, 0.75, 7, 0.5, 0.25, (5,), (0.125,), 3, 0.5, 3, 0.75, 3, 5, 0.125,
    "question", 0.0, 1.0,
)  # fmt: skip


def changed(key: str, value: Any) -> Profile:
    lists = {"further_layers": (5,), "further_keep": (0.5,)} if key.startswith("further") else {}
    return dataclasses.replace(GOOD, **lists | {key: value})


def test_names_and_their_order(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFV_PROFILE", json.dumps(GOOD.to_json() | {"colour": 1}))
    names = ", ".join(f"halfv.{key.key}" for key in KEYS.values())
    assert_same_mistake(plain, f'halfv.colour" is not a key of a profile: those are {names}')


@ALL
def test_type(key: Any, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In JSON and in a GGUF."""
    other = (UINT32, 1) if key.type == STRING else (STRING, "1")
    path = put(GOOD.to_gguf() | {f"halfv.{key.key}": other}, plain, tmp_path / "m.gguf")
    told = natively(path)
    assert told == str(in_python(path)).removeprefix(f"{path}: ") and f"halfv.{key.key} = " in told
    group, _, leaf = key.key.rpartition(".")
    value: dict[str, Any] = GOOD.to_json()
    (value.setdefault(group, {}) if group else value)[leaf] = [[]]
    monkeypatch.setenv("HALFV_PROFILE", json.dumps(value))
    assert_same_mistake(plain, f"halfv.{key.key} = [[]] is not valid: it must be ")


@ALL
def test_values(key: Any) -> None:
    """Ranges, and what depends on other keys."""
    told = {complaints(changed(key.name, value), N_LAYER) for value in key.names or VALUES[key.type]}
    assert all(ours == theirs for ours, theirs in told)
    if key.range:
        assert any(key.range.rule in ours for ours, _ in told)


@pytest.mark.parametrize("key", [key for key in KEYS.values() if key.names], ids=lambda key: key.name)
def test_enums(key: Any) -> None:
    for number, name in enumerate(key.names):
        assert getattr(changed(key.name, name).to_c(), key.name) == number
    struct = GOOD.to_c()
    setattr(struct, key.name, len(key.names))
    assert halfv_cpp.halfv_profile_validate(byref(struct), N_LAYER) == halfv_cpp.HALFV_ERR_ARGUMENT
    names = " or ".join(f"{name} ({number})" for number, name in enumerate(key.names))
    assert halfv_cpp.halfv_last_error().decode() == f"halfv: halfv.{key.key} = 2 is not valid: it must be {names}"


@ALL
def test_needed(key: Any, plain: Path, tmp_path: Path) -> None:
    """And what it is where it is not there, unless its partner is alone then."""
    keys = {name: value for name, value in FULL.to_gguf().items() if name != f"halfv.{key.key}"}
    path = put(keys, plain, tmp_path / "m.gguf")
    told, ours = natively(path), in_python(path)
    assert told == (ours.removeprefix(f"{path}: ") if isinstance(ours, str) else ours)
    assert (told == f"halfv.{key.key} is missing: a profile needs it") == key.needed


def test_every_key_is_written_and_read(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(map(FULL._is_usual, KEYS.keys() - {"ivr_bias"}))  # that is not for one with neighbours
    assert natively(put(FULL.to_gguf(), plain, tmp_path / "m.gguf")) == FULL
    monkeypatch.setenv("HALFV_PROFILE", json.dumps(FULL.to_json()))
    assert natively(plain) == in_python(plain) == FULL


def test_fields() -> None:
    """Which are written out, for editors and in C."""
    assert KEYS.keys() | {"calibration"} == {field.name for field in dataclasses.fields(Profile)}
    switches = {"pixel_prune", "frames_prune", "n_further"}
    assert KEYS.keys() | switches | {"size"} == {name for name, _ in halfv_cpp.halfv_profile._fields_}
    assert {name for name, key in KEYS.items() if key.range is LEVELS} == {"pixel_tau", "frames_tau"}
    assert [field.name for field in dataclasses.fields(Pruning)][:2] == ["profile", "keep"]
    assert ASKED.keys() | {"profile", "keep"} == {field.name for field in dataclasses.fields(Pruning)}
    assert set(flags.PRUNING) == ASKED.keys() | {"profile", "keep"} <= errors.FLAGS.keys()


def test_what_is_for_the_encoder(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a profile for a model that cannot be pruned the native library keeps just that."""
    monkeypatch.setenv("HALFV_PROFILE", json.dumps(FULL.to_json()))
    params = llama_h.llama_model_default_params()
    params.vocab_only = True
    model = llama_h.llama_model_load_from_file(str(plain).encode(), params)
    assert not halfv_cpp.halfv_model_supported(model)
    found = Profile.from_c(halfv_cpp.model_profile(model))
    llama_h.llama_model_free(model)
    assert found == FULL.encoder_part(2) and found.intake == FULL.intake
    assert all(getattr(found.intake, field.name) != field.default for field in dataclasses.fields(Intake))


def test_options_of_the_handler(root: Path) -> None:
    """It takes all but channels and stages behind III, and docs/llama-cpp-python.md names them."""
    text = (root / "halfv_edge" / "handler" / "handler.py").read_text()
    asked = ASKED.keys() | {"profile", "keep"}
    taken = asked & set(re.findall(r"^        (\w+): .* = None,$", text, re.MULTILINE))
    assert asked - taken == {"ffn_layer", "ffn_keep", "further_layers", "further_keep"}
    table = (root / "docs" / "llama-cpp-python.md").read_text().partition("## Options")[2].partition("\n\n")[0]
    assert taken <= set(re.findall(r"`(\w+)`", table))
