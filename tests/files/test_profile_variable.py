"""HALFV_PROFILE, read by the native library and by Python."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import halfv_cpp
import pytest
from halfv_cpp import llama_h

from halfv_edge.gguf.read import (
    STRING,
)
from halfv_edge.profile import resolve, stored
from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import Client
from tests.support.profiles import (
    CASES,
    GOOD,
    assert_same_mistake,
    case_id,
    in_python,
    natively,
    nested,
    put,
    values_of,
)


@pytest.mark.parametrize("case", [case for case in CASES if "types" not in case], ids=case_id)
def test_variable(case: dict[str, Any], plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table once more, as JSON."""
    values = values_of(case)
    monkeypatch.setenv("HALFV_PROFILE", " " + json.dumps(nested(values)))
    if case["says"] is None:
        assert natively(plain) == in_python(plain) is not None
    elif any(isinstance(value, float) and not math.isfinite(value) for value in values.values()):
        assert_same_mistake(plain, "is not valid JSON")
    else:
        assert_same_mistake(plain, f": {case['says']}")
        assert str(natively(plain)).startswith(("HALFV_PROFILE: ", 'HALFV_PROFILE, for the model "'))


def test_variable_before_what_a_model_comes_with(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(GOOD.to_gguf(), plain, tmp_path / "model.gguf")
    given_, flag = dataclasses.replace(GOOD, ivr_keep=0.75), dataclasses.replace(GOOD, ivr_keep=0.25)
    file = tmp_path / "profile.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(given_.to_json()).encode())
    stored.write_sidecar(flag, path)
    for value in (json.dumps(given_.to_json()), str(file)):
        monkeypatch.setenv("HALFV_PROFILE", value)
        assert natively(path) == given_
        assert resolve.resolve(path) == resolve.Resolved(given_, "HALFV_PROFILE")
        assert resolve.resolve(path, flag) == resolve.Resolved(flag, "flag")
        with Client(path, on_model=lambda model: halfv_cpp.set_model_profile(model, flag.to_c())) as client:
            assert Profile.from_c(halfv_cpp.model_profile(client.model)) == flag
        for off in ("off", "0"):
            monkeypatch.setenv("HALFV", off)
            assert natively(path) is in_python(path) is None
        monkeypatch.delenv("HALFV")
    for nothing in ("", " \n"):
        monkeypatch.setenv("HALFV_PROFILE", nothing)
        assert natively(path) == GOOD
        assert resolve.resolve(path) == resolve.Resolved(flag, "sidecar")


def test_variable_is_for_models_that_can_be_pruned(llama_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may load others beside them, such as an embedder."""
    monkeypatch.setenv("HALFV_PROFILE", "{}")
    params = llama_h.llama_model_default_params()
    params.vocab_only = True
    path = llama_tree / "models" / "ggml-vocab-gpt-2.gguf"
    other = llama_h.llama_model_load_from_file(str(path).encode(), params)
    assert not halfv_cpp.halfv_model_supported(other)
    assert halfv_cpp.model_profile(other) is None
    llama_h.llama_model_free(other)


def test_files_of_the_variable(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    long = tmp_path / "long.json"
    long.write_bytes(b" " * (stored.MAX_SIDECAR_BYTES + 1))
    many = tmp_path / "many.json"
    many.write_text(json.dumps({str(i): i for i in range(60_000)}))
    (tmp_path / "\x1b[31mred.json").write_text("{}")
    for value, sentence in {
        str(tmp_path / "nope.json"): "cannot be read: No such file or directory",
        str(tmp_path): "is a folder: name the file in it",
        str(pipe): "is not a regular file",
        str(long): "is too long for a profile",
    }.items():
        monkeypatch.setenv("HALFV_PROFILE", value)
        assert_same_mistake(plain, sentence)
    for value, sentence in {
        str(many): "it has too many keys",
        str(tmp_path / "\x1b[31mred.json"): 'HALFV_PROFILE ("'
        + str(tmp_path / r"\u001b[31mred.json")
        + '"): halfv.version is',
    }.items():
        monkeypatch.setenv("HALFV_PROFILE", value)
        told = natively(plain)
        assert isinstance(told, str) and sentence in told and told.isascii() and told.isprintable()


def test_a_hostile_string_in_a_gguf(plain: Path, tmp_path: Path) -> None:
    """It reaches the log and the terminal in one line of printable ASCII, and not long."""
    path = put(dict(GOOD.to_gguf()), plain, tmp_path / "model.gguf")
    keys = GOOD.to_gguf() | {"halfv.ssr.rest": (STRING, "\x1b]0;owned\x07\n\u202e" + "x" * 100_000)}
    told = natively(put(keys, path, tmp_path / "bad.gguf"))
    assert told == in_python(tmp_path / "bad.gguf").removeprefix(f"{tmp_path / 'bad.gguf'}: ")
    assert told.startswith(r'halfv.ssr.rest = "\u001b]0;owned\u0007\n\u202exxx')
    assert told.isascii() and told.isprintable() and len(told) < 200
