"""Profiles as tests spell them, and the table that Python and the native library share."""

from __future__ import annotations

import dataclasses
import json
from ctypes import byref
from pathlib import Path
from typing import Any

import halfv_cpp
import pytest

from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import (
    TYPE_NAMES,
    read_metadata,
)
from halfv_edge.gguf.write import replace_keys
from halfv_edge.profile import resolve
from halfv_edge.profile.keys import KEYS
from halfv_edge.profile.profile import Profile
from halfv_edge.profile.values import WHOLES
from halfv_edge.testing.client import LOG, Client, log_text

TABLE = json.loads((Path(__file__).parent / "profile_cases.json").read_text())
N_LAYER, BASE, CASES = TABLE["n_layer"], TABLE["base"], TABLE["cases"]
TYPES = {"version": "u32"} | {key.key: "arr" if key.type == WHOLES else TYPE_NAMES[key.type] for key in KEYS.values()}
GOOD = Profile(2, 0.5, 0.2, 4, 0.1, "dropped")


def case_id(case: dict[str, Any]) -> str:
    return case["name"].replace(" ", "-")


def values_of(case: dict[str, Any]) -> dict[str, Any]:
    values = {k: v for k, v in (BASE | case.get("set", {})).items() if k not in case.get("unset", ())}
    return {k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in values.items()}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in flat.items():
        group, _, leaf = key.rpartition(".")
        (out.setdefault(group, {}) if group else out)[leaf] = value
    return out


def put(keys: dict[str, tuple[int, Any]], source: Path, target: Path) -> Path:
    replace_keys(read_metadata(source), "halfv.", keys, target, progress=False)
    return target


def said(error: pytest.ExceptionInfo) -> str:
    return str(error.value)


# HALFV_PROFILE, read by the native library and by Python


def natively(path: Path) -> Profile | str | None:
    """What the library takes for a model, or its sentence; it then has to refuse the context as well."""
    seen: list[Any] = []

    def ask(model: int) -> None:
        out = halfv_cpp.halfv_profile()
        rc = halfv_cpp.halfv_model_get_profile(model, byref(out))
        seen.append(halfv_cpp.halfv_last_error().decode() if rc < 0 else Profile.from_c(out) if rc == 0 else None)

    LOG.clear()
    try:
        with Client(path, on_model=ask):
            assert not isinstance(seen[0], str)
    except RuntimeError as error:
        assert "cannot make a context" in str(error)
        assert seen[0].startswith("halfv: ")
        assert seen[0] in log_text()
        return seen[0].removeprefix("halfv: ")
    return seen[0]


def in_python(path: Path) -> Profile | str | None:
    try:
        found = resolve.resolve(path).profile
    except HalfVError as error:
        return str(error)
    return found and dataclasses.replace(found, calibration=None)


def assert_same_mistake(path: Path, sentence: str) -> None:
    """Both say it; where Python's parser explains more, up to there."""
    theirs, ours = natively(path), in_python(path)
    assert isinstance(theirs, str) and isinstance(ours, str)
    assert sentence in theirs and sentence in ours
    assert theirs.isascii() and theirs.isprintable() and len(theirs) < 800
    if "not valid JSON" not in sentence and "nested too deep" not in sentence:
        assert theirs.replace('"', "") == ours.replace('"', "").removesuffix(".")


def complaints(given: Profile, n_layer: int) -> tuple[str, str]:
    """What Python and C++ say of a profile, "" when they take it."""
    try:
        given.validate(n_layer)
        ours = ""
    except HalfVError as error:
        ours = f"halfv: {error}"
    rc = halfv_cpp.halfv_profile_validate(byref(given.to_c()), n_layer)
    theirs = halfv_cpp.halfv_last_error().decode() if rc else ""
    return ours, theirs.replace("-nan", "nan")
